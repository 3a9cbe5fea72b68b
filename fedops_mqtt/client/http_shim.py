"""FedOps' HTTP face of a client: `GET /online` and `POST /start`, thin over the daemon.

A start that comes here is the same start as one that comes on the bus: both are the daemon's `start`.
"""

import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, status
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp

from fedops_mqtt.bus import parse_broker_urls
from fedops_mqtt.client.client_managers import ClientManagers, NoServerError
from fedops_mqtt.client.client_utils import FLClientStatus, ManagerData
from fedops_mqtt.core.client_state import LocalStart, StartDecision
from fedops_mqtt.device.identity import ShimAddressError
from fedops_mqtt.protocol import Answer
from fedops_mqtt.runtime.http_access import AccessControlMiddleware, AccessRules, is_from_browser
from fedops_mqtt.runtime.http_server import listen
from fedops_mqtt.runtime.http_server import serving as serve
from fedops_mqtt.runtime.machine import split_address
from fedops_mqtt.runtime.settings import ClientSettings

logger = logging.getLogger(__name__)

_SHUTDOWN_S = 1
"""An open request is given this long when the daemon ends."""
_MAX_CONNECTIONS = 64
"""A FedOps manager has one, a page six."""
_DEFAULT_HOST = "127.0.0.1"
_MAX_BODY_BYTES = 64 * 1024
"""A start has a hundred; a small device must not be filled up by a large one."""

View = dict[str, str | int | bool | None]


class Refused(BaseModel):
    """The body of every refusal, in FastAPI's form: a sentence, or what is wrong with each field."""

    detail: str | list[dict[str, Any]]


def make_shim(
    *,
    view: Callable[[], FLClientStatus],
    start: Callable[[LocalStart], Awaitable[StartDecision]],
    managers: ClientManagers,
    may_start_at: Callable[[str], bool] = lambda server_ip: True,
    starts_by_get: bool = False,
    takes_any_mac: bool = False,
) -> FastAPI:
    """Return the HTTP app over a daemon.

    `may_start_at` decides which FL servers a start may name; `managers` give where to train at where it names none,
    and for the global model's number. `takes_any_mac`: a start may be for another MAC, that of its sender's container.
    Only with `starts_by_get` does a GET start anything: in a browser a link or an image is enough for one.
    """
    app = FastAPI(
        title="fedops-mqtt client",
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": Refused}},
        exception_handlers={ValidationError: _malformed, NoServerError: _no_server},
    )

    @app.get("/online")
    async def online() -> View:
        """Return this client's condition under FedOps' names, old and new."""
        return view().with_first_names()

    @app.post("/start", responses=_START_REFUSALS, openapi_extra=_START_BODY)
    async def start_training(request: Request) -> View:
        """Start training at a server, in the background; the same request again starts nothing more."""
        # Read by hand: FedOps' programs send no body, or JSON without a content type.
        return await start_at(ManagerData.model_validate_json(await request.body() or b"{}"))

    async def start_at(asked: ManagerData) -> View:
        mine = view().client_mac
        if not takes_any_mac and asked.client_mac not in (None, mine):
            how = f"if its manager is in another container, use --mac {asked.client_mac} or --http-any-mac"
            why = f"client_mac is {asked.client_mac}, this client is {mine}; {how}"
            raise HTTPException(status.HTTP_409_CONFLICT, why)
        server_ip = await managers.find_server(asked.server_ip)
        if asked.server_ip is not None and not may_start_at(server_ip):
            why = f"server_ip {server_ip} is not allowed here: add it to FEDOPS_MQTT_SERVER_IP_ALLOW"
            raise HTTPException(status.HTTP_403_FORBIDDEN, why)
        decision = await start(LocalStart(server_ip=server_ip, gl_model=await managers.find_gl_model()))
        if decision.answer is Answer.REJECTED:
            raise HTTPException(status.HTTP_409_CONFLICT, decision.reason)
        return view().with_first_names()

    @app.get("/start/{server_ip}", responses=_START_REFUSALS)
    async def start_of_first_managers(server_ip: str, request: Request) -> View:
        """Start training as FedOps' first client managers ask for it, where a setting allows that."""
        if not starts_by_get:
            why = "GET starts nothing here: POST /start, or set FEDOPS_MQTT_HTTP_GET_START=true"
            raise HTTPException(status.HTTP_403_FORBIDDEN, why)
        if is_from_browser(dict(request.headers.raw)):
            raise HTTPException(status.HTTP_403_FORBIDDEN, "not for web pages")
        return await start_at(ManagerData(server_ip=server_ip))

    return app


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ValidationError)
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return JSONResponse({"detail": problems}, status.HTTP_422_UNPROCESSABLE_CONTENT)


async def _no_server(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status.HTTP_422_UNPROCESSABLE_CONTENT)


_START_BODY = {"requestBody": {"content": {"application/json": {"schema": ManagerData.model_json_schema()}}}}
_START_REFUSALS: dict[int | str, dict[str, Any]] = {
    status.HTTP_403_FORBIDDEN: {"description": "this FL server is not allowed"},
    status.HTTP_409_CONFLICT: {"description": "not this client, or busy"},
    status.HTTP_422_UNPROCESSABLE_CONTENT: {"description": "malformed, or the FL server is unknown"},
}


def access_rules(settings: ClientSettings) -> AccessRules:
    """Return who may come in, by the settings."""
    return AccessRules(
        token=settings.http_token.get_secret_value() if settings.http_token else None,
        cert_file=settings.http_cert_file,
        key_file=settings.http_key_file,
        client_ca_file=settings.http_client_ca_file,
        cors_origins=tuple(_entries(settings.http_cors)),
        max_body_bytes=_MAX_BODY_BYTES,
    )


def allowed_servers(settings: ClientSettings) -> Callable[[str], bool]:
    """Return which FL servers a start over HTTP may name.

    Without a list: those on this machine and on the hosts that the settings name (broker, FedOps' server manager,
    aggregation host). Else whoever reaches the shim could send the device to a server of their own.
    """
    entries = _entries(settings.server_ip_allow) or [
        "127.0.0.0/8",
        "::1",
        "localhost",
        *(each.host for each in parse_broker_urls(settings.broker)),
        urlsplit(settings.server_manager_url or "").hostname or "",
        settings.aggregation_host or "",
    ]
    return lambda server_ip: any(_matches(server_ip, entry) for entry in entries if entry)


@contextlib.asynccontextmanager
async def serving(app: FastAPI, address: str, rules: AccessRules | None = None) -> AsyncIterator[str]:
    """Serve `app` in this event loop while the block runs; yields `host:port` as it listens.

    Raises:
        ShimAddressError: the address is taken, none of this machine's, or beyond it and open to anybody.
    """
    rules = rules or AccessRules(max_body_bytes=_MAX_BODY_BYTES)
    listening = _listen(address, rules)
    host, port = listening.getsockname()[:2]
    guarded = AccessControlMiddleware(app, rules, refuse=_refuse)
    async with serve(
        guarded, listening, rules, name="http-shim", shutdown_s=_SHUTDOWN_S, max_connections=_MAX_CONNECTIONS
    ):
        logger.info("HTTP shim listens", extra={"address": f"{host}:{port}"})
        yield f"{host}:{port}"


def _listen(address: str, rules: AccessRules) -> socket.socket:
    try:
        return listen(
            address, rules, what="the HTTP shim", setting="FEDOPS_MQTT_HTTP_TOKEN", default_host=_DEFAULT_HOST
        )
    except (OSError, OverflowError) as error:
        raise ShimAddressError(address, getattr(error, "strerror", None) or str(error)) from error


def _refuse(status_: HTTPStatus, why: str, headers: Mapping[str, str]) -> ASGIApp:
    """Answer in FastAPI's form, as the endpoints do."""
    return JSONResponse({"detail": why}, status_, headers=dict(headers))


def _entries(text: str) -> Sequence[str]:
    return text.replace(",", " ").split()


def _matches(server_ip: str, allowed: str) -> bool:
    """Return whether an entry of the list (host, network, or host:port) means this server."""
    host = split_address(server_ip)[0].lower()
    if allowed.lower() in (server_ip.lower(), host):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(allowed, strict=False)
    except ValueError:
        return False
