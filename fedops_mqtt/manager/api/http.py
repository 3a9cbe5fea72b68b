"""The manager's HTTP address: where it listens, who has access, what it answers on standby."""

import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.types import ASGIApp

from fedops_mqtt.manager.api.app import problem
from fedops_mqtt.runtime.http_access import AccessControlMiddleware, AccessRules
from fedops_mqtt.runtime.http_server import listen as open_address
from fedops_mqtt.runtime.http_server import serving, url_of
from fedops_mqtt.runtime.machine import is_loopback
from fedops_mqtt.runtime.settings import ManagerSettings

logger = logging.getLogger(__name__)

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - where `:8004` means every address it is refused without a token


def access_rules(settings: ManagerSettings) -> AccessRules:
    """Return the access rules of the settings."""
    token = settings.manager_token
    return AccessRules(
        token=token.get_secret_value() if token else None,
        cert_file=settings.http_cert_file,
        key_file=settings.http_key_file,
        client_ca_file=settings.http_client_ca_file,
        max_file_bytes=settings.app_max_bytes,
        cors_origins=tuple(filter(None, settings.http_cors.replace(",", " ").split())),
    )


def guarded(app: ASGIApp, rules: AccessRules) -> ASGIApp:
    """Return the application behind access control, which refuses with a problem document."""

    def refuse(status: HTTPStatus, why: str, headers: Mapping[str, str]) -> ASGIApp:
        return problem(status, why, headers=dict(headers))

    return AccessControlMiddleware(app, rules, refuse=refuse)


def listen(address: str, rules: AccessRules) -> socket.socket:
    """Return a socket that listens at `host:port`; port 0 takes a free one.

    Raises:
        AccessConfigError: the host is beyond this machine and access needs no token.
        OSError: the address is taken or is not this machine's.
    """
    listening = open_address(
        address, rules, what="the API", setting="FEDOPS_MQTT_MANAGER_TOKEN", default_host=_EVERYWHERE
    )
    if rules.token is not None and not rules.is_tls and not is_loopback(listening.getsockname()[0]):
        logger.warning("the API's token crosses the network in the clear: set http_cert_file", extra={"at": address})
    return listening


RETRY_S = 2
_SHUTDOWN_S = 1
_ON_STANDBY = problem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "this manager is on standby, another one leads; it takes over when that one goes"
    " (the leader's address: mosquitto_sub -t fedops/v1/manager/status -C 1)",
    headers={"Retry-After": str(RETRY_S), "Refresh": str(RETRY_S)},  # a browser honours the latter, whatever the body
)


@asynccontextmanager
async def standing_by(listening: socket.socket, rules: AccessRules) -> AsyncIterator[None]:
    """Answer every request with 503 while the block runs, token or not; the socket stays open for the leader to be."""
    logger.info("answering on standby", extra={"at": url_of(listening, rules)})
    async with serving(_ON_STANDBY, listening.dup(), rules, name="standby", shutdown_s=_SHUTDOWN_S):
        yield
