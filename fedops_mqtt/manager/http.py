"""The manager's HTTP address: where it listens and how it serves; `door` says who may come in."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus

import uvicorn
from starlette.types import ASGIApp

from fedops_mqtt.door import Door, DoorRules, ExposedError, check_address, is_loopback
from fedops_mqtt.manager.api import problem
from fedops_mqtt.manager.errors import ExposedApiError
from fedops_mqtt.settings import ManagerSettings

logger = logging.getLogger(__name__)

SHUTDOWN_S = 2
"""Requests still open when the manager ends are cut after this."""


def door_rules(settings: ManagerSettings) -> DoorRules:
    """Return who may come in, by the settings."""
    token = settings.manager_token
    return DoorRules(
        token=token.get_secret_value() if token else None,
        cert_file=settings.http_cert_file,
        key_file=settings.http_key_file,
        client_ca_file=settings.http_client_ca_file,
        cors_origins=tuple(filter(None, settings.http_cors.replace(",", " ").split())),
    )


def guarded(app: ASGIApp, rules: DoorRules) -> ASGIApp:
    """Return the application behind its door; who is turned away gets a problem document."""

    def refuse(status: HTTPStatus, why: str, headers: Mapping[str, str]) -> ASGIApp:
        return problem(status, why, headers=dict(headers))

    return Door(app, rules, refuse=refuse)


def listen(address: str, rules: DoorRules) -> socket.socket:
    """Return a socket that listens at `host:port`; port 0 takes a free one.

    Raises:
        ExposedApiError: the host is beyond this machine and anybody would be let in.
        OSError: the address is taken or is none of this machine.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104 - refused just below without a token
    try:
        check_address(host, address, rules, what="the API", setting="FEDOPS_MQTT_MANAGER_TOKEN")
    except ExposedError as error:
        raise ExposedApiError(address, str(error)) from error
    if rules.token is not None and not rules.is_tls and not is_loopback(host):
        logger.warning("the API's token crosses the network in the clear: set http_cert_file", extra={"at": address})
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family)


def url_of(listening: socket.socket, rules: DoorRules) -> str:
    """Return the URL under which a listening socket is reached from this machine."""
    host, port = listening.getsockname()[:2]
    return f"{'https' if rules.is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def serving(app: ASGIApp, listening: socket.socket, rules: DoorRules) -> AsyncIterator[None]:
    """Serve an application while the block runs."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="websockets-sansio",  # the page is live over one; uvicorn's older way uses what websockets deprecates
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
        **rules.for_uvicorn(),
    )
    server = _Server(config)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listening]), name="manager-api")
        try:
            yield
        finally:
            server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: when the manager ends is the manager's to say."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield
