"""The bridge as a process: every FedOps client it serves, its endpoints, and one life around them."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus

import httpx
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedops_mqtt import __version__
from fedops_mqtt.bridge.api import make_api
from fedops_mqtt.bridge.classic import ClassicOptions
from fedops_mqtt.bridge.client_proxy import ClientProxy, own_identity
from fedops_mqtt.bridge.peer_registry import PeerRegistry
from fedops_mqtt.bridge.peer_state import FedOpsHttpClient, PeerState
from fedops_mqtt.bus import BusOptions, parse_broker_urls, without_password
from fedops_mqtt.protocol import IdentityError, normalise_mac
from fedops_mqtt.runtime.http_access import AccessControlMiddleware, AccessRules, credentials_in, is_from_browser
from fedops_mqtt.runtime.http_server import listen, serving, url_of
from fedops_mqtt.runtime.machine import join_address, split_address
from fedops_mqtt.runtime.settings import BridgeSettings, BusSettings
from fedops_mqtt.runtime.systemd import on_end_signal


def guarded(app: ASGIApp, rules: AccessRules) -> ASGIApp:
    """Return the application behind its access control; each request has the client that the URL's user name names."""

    async def enter(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if is_from_browser(headers):
            await _refuse(HTTPStatus.FORBIDDEN, "not for web pages", {})(scope, receive, send)
        else:
            scope.setdefault("state", {})["client_mac"] = _mac_of(credentials_in(headers)[0])
            await app(scope, receive, send)

    return AccessControlMiddleware(enter, rules, refuse=_refuse)


def _refuse(status: HTTPStatus, why: str, headers: Mapping[str, str]) -> ASGIApp:
    return JSONResponse({"detail": why}, status, dict(headers))


def _mac_of(user: str) -> str | None:
    try:
        return normalise_mac(user)
    except IdentityError:
        return None


logger = logging.getLogger(__name__)

_AGENT = {"fedops-mqtt": __version__, "via": "http bridge"}
"""Nothing of this machine: it is not the device's."""
_MAX_PORT = 65535
_SHUTDOWN_S = 1
"""Requests still open when the bridge ends are cut after this."""


def _reach_for(settings: BridgeSettings, task_id: str) -> tuple[str, BusOptions]:
    """Return the broker's URL and how a task's server is known there.

    Raises:
        SettingsFileError, ValidationError: its bundle cannot be used.
    """
    passed_on = {name: getattr(settings, name) for name in BusSettings.model_fields}
    own = BusSettings(**passed_on | own_identity(settings.bundles, f"server-{task_id}"))
    return own.broker, BusOptions.from_settings(own)


class BridgeConfigError(ValueError):
    """The settings do not name whom the bridge serves."""

    def __init__(self, setting: str, problem: str) -> None:
        self.setting = setting
        super().__init__(f"{setting}: {problem}")


class Bridge:
    """Publishes and receives for FedOps' programs; `run` it once.

    Raises:
        BridgeConfigError: `clients` or `grpc_gateways` is malformed.
        BrokerUrlError: the broker's URL is invalid.
    """

    def __init__(self, settings: BridgeSettings) -> None:
        self.settings = settings
        parse_broker_urls(settings.broker)
        self._targets = clients_in(settings.clients)
        gateway_addresses(settings.grpc_gateways, len(self._targets))
        self._shutdown_requested = asyncio.Event()
        self._turn = asyncio.Lock()
        self._num_gateways = 0
        self._registry = PeerRegistry(
            classic=ClassicOptions(
                reach=partial(_reach_for, settings),
                state_dir=settings.state_dir,
                heartbeat_s=settings.heartbeat_s,
                probe_s=settings.poll_s,
                start_s=settings.server_start_limit_s,
                agent=_AGENT,
            ),
            server_at=settings.fedops_server,
            make_proxy=self._make_proxy,
        )

    def leave(self) -> None:
        """End it: client-out or server-out is published for all that it serves."""
        self._shutdown_requested.set()

    async def run(self, on_listening: Callable[[str], None] = lambda sentence: None) -> None:
        """Be the bridge until asked to leave; `on_listening` gets the address once it listens.

        Raises:
            AccessConfigError: it would listen beyond this machine for anybody.
            OSError: the address is taken.
            BrokerUrlError: the broker's URL is invalid.
        """
        token = self.settings.bridge_token.get_secret_value() if self.settings.bridge_token else None
        rules = AccessRules(token=token, is_for_fedops=True)
        listening = listen(
            self.settings.http,
            rules,
            what="the bridge",
            setting="FEDOPS_MQTT_BRIDGE_TOKEN",
            default_host="127.0.0.1",
        )
        app = guarded(make_api(self._registry), rules)
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            serving(app, listening, rules, name="bridge-http", shutdown_s=_SHUTDOWN_S),
            asyncio.TaskGroup() as group,
        ):
            self._registry.open(group)
            for mac, url in self._targets:
                peer = FedOpsHttpClient(
                    http, url, timeout_s=self.settings.online_timeout_s, start_s=self.settings.join_limit_s
                )
                self._registry.add(PeerState(name=without_password(url), peer=peer, client_mac=mac))
            on_listening(url_of(listening, rules))
            await self._shutdown_requested.wait()
            self._registry.close()

    def _make_proxy(self, peer_state: PeerState) -> ClientProxy:
        grpc_gateways = gateway_addresses(self.settings.grpc_gateways, self._num_gateways + 1)[-1]
        self._num_gateways += 1
        return ClientProxy(
            peer_state, settings=self.settings, grpc_gateways=grpc_gateways, turn=self._turn, agent=_AGENT
        )


def clients_in(text: str) -> list[tuple[str | None, str]]:
    """Return MAC (None: its own) and URL of each client in `[MAC=]URL, [MAC=]URL`.

    Raises:
        BridgeConfigError: one is neither.
    """
    return [_client_in(entry) for entry in text.replace(",", " ").split()]


def _client_in(entry: str) -> tuple[str | None, str]:
    before, is_named, url = entry.rpartition("=")
    try:
        mac = normalise_mac(before) if is_named else None
    except IdentityError as error:
        raise BridgeConfigError("clients", f"{before!r} before a URL: {error}") from error
    try:
        has_host = url.startswith(("http://", "https://")) and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        has_host = False
    if not has_host:
        shown = without_password(url)
        raise BridgeConfigError("clients", f"{shown!r} is not [MAC=]URL, such as http://192.168.1.20:8003")
    return mac, url


def gateway_addresses(first: str, count: int) -> list[str]:
    """Return the gRPC addresses of so many clients: consecutive ports, or any where the first is 0.

    Raises:
        BridgeConfigError: there are not so many ports.
    """
    host, port = split_address(first, default_host="127.0.0.1")
    if port and port + count - 1 > _MAX_PORT:
        raise BridgeConfigError("grpc_gateways", f"{count} clients do not fit into the ports from {port} on")
    return [join_address(host, port + index if port else 0) for index in range(count)]


async def run_bridge(settings: BridgeSettings, on_listening: Callable[[str], None]) -> None:
    """Run the bridge until SIGTERM, SIGHUP or Ctrl-C.

    Raises:
        BridgeConfigError: the settings do not name whom it serves.
        AccessConfigError, OSError, BrokerUrlError: see `Bridge.run`.
    """
    bridge = Bridge(settings)
    with on_end_signal(lambda number: bridge.leave()):
        await bridge.run(on_listening)
