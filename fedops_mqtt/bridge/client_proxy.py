"""One FedOps client's presence: found, represented by a daemon of its own on the bus, and dropped when it is offline.

A client that is on the bus itself, because its device has moved to MQTT, is left to itself for good.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from fedops_mqtt.bridge.peer_state import FedOpsHttpClient, FedOpsHttpError, OnlineAnswer, PeerState
from fedops_mqtt.bridge.start_call import BridgeLimits
from fedops_mqtt.bridge.trainer import HttpTrainer
from fedops_mqtt.bus import BrokerUrlError, ConflictingInstanceError, EpochFileError, without_password
from fedops_mqtt.device.daemon import Daemon
from fedops_mqtt.device.journal import DaemonRunningError
from fedops_mqtt.protocol import first_line, mac_to_level
from fedops_mqtt.protocol.wire import first_problem
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.settings import BridgeSettings, ClientSettings, broker_of
from fedops_mqtt.runtime.settings_file import SettingsFileError

logger = logging.getLogger(__name__)

LOST = "lost"
_MISSES = 3
"""Polls in a row without an answer until a client counts as offline."""
_REGISTRATION_LEASE_S = 30.0
"""A FedOps client manager registers its client every six and a half seconds while it does not train."""


CANNOT_SERVE = (BrokerUrlError, DaemonRunningError, EpochFileError, SettingsFileError, ValidationError, OSError)
"""What stands in the way of serving one program, which must not end the service of the others."""


def problem_of(error: Exception) -> str:
    """Return one of these errors as one line for the log; without values, of which one may be a password."""
    return first_problem(error, "settings") if isinstance(error, ValidationError) else first_line(str(error))


class ClientProxy:
    """Finds one FedOps client, and serves it as long as it is there. `run` it as a task, for ever."""

    def __init__(
        self,
        peer_state: PeerState,
        *,
        settings: BridgeSettings,
        grpc_gateways: str,
        turn: asyncio.Lock,
        agent: Mapping[str, str],
    ) -> None:
        self._peer_state = peer_state
        self._settings = settings
        self._gateway_address = grpc_gateways
        self._turn = turn
        self._agent = agent
        self._daemon: Daemon | None = None
        self._registered = asyncio.Event()
        self._is_closing = False

    @property
    def peer_state(self) -> PeerState:
        """What is known of the client."""
        return self._peer_state

    async def run(self) -> None:
        """Serve the client whenever it is there, until it is on the bus itself."""
        while not self._is_closing:
            await self._until_here()
            try:
                await self._serve()
            except ConflictingInstanceError:
                logger.warning("this client is on the bus by itself now; the bridge leaves it", extra=self._facts())
                return
            except CANNOT_SERVE as error:
                facts = self._facts() | {"problem": problem_of(error)}
                logger.error("cannot serve a FedOps client", extra=facts)
                await asyncio.sleep(RETRY_S)

    def leave(self) -> None:
        """It leaves (`/flclient_out`); it is found again when it comes back."""
        if self._daemon is not None:
            self._daemon.leave()

    def close(self) -> bool:
        """Leave for good; returns whether there is a goodbye to wait for."""
        self._is_closing = True
        self.leave()
        return self._daemon is not None

    async def register(self, answer: OnlineAnswer) -> None:
        """Its client manager reports how it is (`RegisterFLTask`)."""
        await self._peer_state.note_registration(answer)
        if answer.is_online:
            self._identify(answer)
            self._registered.set()
        else:
            self.leave()

    async def _until_here(self) -> None:
        if self._peer_state.peer is None:
            await self._registered.wait()
        else:
            await self._until_online(self._peer_state.peer)

    async def _until_online(self, peer: FedOpsHttpClient) -> None:
        is_logged = False
        while True:
            try:
                answer = await peer.online()
                if answer.is_online:
                    break
            except FedOpsHttpError as error:
                if not is_logged:
                    logger.info(
                        "waiting for a FedOps client",
                        extra={"url": without_password(peer.url), "problem": error.problem},
                    )
                is_logged = True
            await asyncio.sleep(self._settings.poll_s)
        self._identify(answer)
        self._peer_state.hosts = await _addresses_of(peer.url)
        await self._peer_state.note_online(answer)

    def _identify(self, answer: OnlineAnswer) -> None:
        peer_state = self._peer_state
        peer_state.own_mac, peer_state.task_id = answer.client_mac, answer.task_id
        peer_state.client_mac = peer_state.client_mac or answer.client_mac
        peer_state.client_name = answer.client_name

    async def _serve(self) -> None:
        self._daemon = daemon = self._make_daemon()
        logger.info("serves a FedOps client", extra=self._facts() | {"task_id": self._peer_state.task_id})
        watch = (
            self._watch_registrations if self._peer_state.peer is None else partial(self._poll, self._peer_state.peer)
        )
        try:
            async with alongside(_leaving_after(watch, daemon), name=f"presence-{self._peer_state.name}"):
                await daemon.run()
        finally:
            self._daemon = None
            self._registered.clear()
            await self._peer_state.note_departed()
        logger.info("FedOps client does not answer", extra=self._facts())

    def _make_daemon(self) -> Daemon:
        peer_state, settings = self._peer_state, self._settings
        passed_on = {name: getattr(settings, name) for name in type(settings).model_fields if name in _PASSED_ON}
        if peer_state.client_mac is not None:
            passed_on |= own_identity(settings.bundles, mac_to_level(peer_state.client_mac))
        client = ClientSettings(
            **passed_on,
            task_id=peer_state.task_id,
            mac=peer_state.client_mac,
            client_name=peer_state.client_name or peer_state.name,
            app=_APP,
            http=None,
            system_interval_s=0,  # the load of this machine is not that of the client's
        )
        limits = BridgeLimits(come_s=settings.join_limit_s, report_s=settings.report_limit_s)
        make_trainer = partial(
            HttpTrainer, peer_state=peer_state, grpc_gateways=self._gateway_address, turn=self._turn, limits=limits
        )
        return Daemon(client, make_trainer=make_trainer, agent=self._agent)

    async def _poll(self, peer: FedOpsHttpClient) -> str:
        """Ask how it is, until it is offline or is another client; returns why to leave."""
        misses = 0
        while misses < _MISSES:
            is_hurried = await self._pause()
            try:
                answer = await peer.online()
            except FedOpsHttpError as error:
                is_busy = error.is_slow and self._peer_state.wanted is not None
                misses += 0 if is_busy else _MISSES if is_hurried else 1
                continue
            misses = 0
            if not answer.is_online:
                return "shutdown"
            if (answer.client_mac, answer.task_id) != (self._peer_state.own_mac, self._peer_state.task_id):
                return f"is {answer.client_mac} of task {answer.task_id} now"
            await self._peer_state.note_online(answer)
        await self._peer_state.note_lost()
        return LOST

    async def _pause(self) -> bool:
        """Wait until it is time to ask again; True where there is reason to believe that it is offline."""
        try:
            async with asyncio.timeout(self._settings.poll_s):
                await self._peer_state.hurry.wait()
        except TimeoutError:
            return False
        self._peer_state.hurry.clear()
        return True

    async def _watch_registrations(self) -> str:
        """Its client manager falls silent while it trains, and for good when it is offline; returns why to leave."""
        while True:
            self._registered.clear()
            try:
                async with asyncio.timeout(_REGISTRATION_LEASE_S):
                    await self._registered.wait()
            except TimeoutError:
                if self._peer_state.wanted is None:
                    return LOST

    def _facts(self) -> dict[str, str | None]:
        return {"client": self._peer_state.name, "client_mac": self._peer_state.client_mac}


RETRY_S = 10.0
"""What stands in the way (another process, a disk) does not go away faster."""
_APP = "fedops_mqtt.bridge.trainer:HttpTrainer"
"""Stands where a device names its app: the training is done elsewhere."""

_PASSED_ON = frozenset(ClientSettings.model_fields) - {"http", "app", "task_id", "mac", "client_name"}


def own_identity(bundles: Path | None, name: str) -> dict[str, Any]:
    """Return how a program that the bridge serves reaches the broker; nothing where there is no bundle of this name.

    A secured broker lets one name have one connection, and a last will needs a connection of its own.

    Raises:
        SettingsFileError: the bundle cannot be used.
    """
    bundle = bundles / name / "bundle.toml" if bundles else None
    return broker_of(bundle) if bundle and bundle.is_file() else {}


async def _leaving_after(watch: Callable[[], Awaitable[str]], daemon: Daemon) -> None:
    daemon.leave(await watch())


async def _addresses_of(url: str) -> frozenset[str]:
    """Return the addresses that requests from the host in a URL may come from."""
    host = urlsplit(url).hostname or ""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a name that cannot be looked up
        return frozenset({host})
    return frozenset(str(each[4][0]) for each in found)
