"""The manager's HTTP address: where it listens and how it serves; `door` says who may come in."""

import logging
import socket
from collections.abc import Mapping
from http import HTTPStatus

from starlette.types import ASGIApp

from fedops_mqtt.manager.api.app import problem
from fedops_mqtt.manager.errors import ExposedApiError
from fedops_mqtt.runtime.http_access import AccessControlMiddleware, AccessRules, ExposedError
from fedops_mqtt.runtime.http_listener import listen as open_address
from fedops_mqtt.runtime.machine import is_loopback
from fedops_mqtt.runtime.settings import ManagerSettings

logger = logging.getLogger(__name__)

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - where `:8004` means every address it is refused without a token


def access_rules(settings: ManagerSettings) -> AccessRules:
    """Return who may come in, by the settings."""
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
    """Return the application behind its door; who is turned away gets a problem document."""

    def refuse(status: HTTPStatus, why: str, headers: Mapping[str, str]) -> ASGIApp:
        return problem(status, why, headers=dict(headers))

    return AccessControlMiddleware(app, rules, refuse=refuse)


def listen(address: str, rules: AccessRules) -> socket.socket:
    """Return a socket that listens at `host:port`; port 0 takes a free one.

    Raises:
        ExposedApiError: the host is beyond this machine and anybody would be let in.
        OSError: the address is taken or is none of this machine.
    """
    try:
        listening = open_address(
            address, rules, what="the API", setting="FEDOPS_MQTT_MANAGER_TOKEN", default_host=_EVERYWHERE
        )
    except ExposedError as error:
        raise ExposedApiError(address, str(error)) from error
    if rules.token is not None and not rules.is_tls and not is_loopback(listening.getsockname()[0]):
        logger.warning("the API's token crosses the network in the clear: set http_cert_file", extra={"at": address})
    return listening
