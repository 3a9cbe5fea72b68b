"""What the daemon says of itself, one event each; its next status on the bus is what an HTTP request was in FedOps.

The daemon speaks through these; what a user's program calls is `client_api`, which ends up here too.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from fedops_mqtt.client.client_utils import ManagerData
from fedops_mqtt.core.client import Client, Step
from fedops_mqtt.core.client_events import Event, Leaving, TrainingEnded
from fedops_mqtt.protocol import Outcome


class Voice(Protocol):
    """The daemon as these APIs need it."""

    @property
    def client(self) -> Client:
        """The client as it is now."""
        ...

    def apply(self, event: Event) -> Awaitable[Step]:
        """Take an event in; the status that follows from it is published."""
        ...


class _Words:
    def __init__(self, voice: Voice, on_client_out: Callable[[], None]) -> None:
        self._voice = voice
        self._on_client_out = on_client_out

    async def get_client_out(self) -> None:
        """Say that this client leaves: training is interrupted, then the daemon says client-out (`/flclient_out`)."""
        await self._voice.apply(Leaving())
        self._on_client_out()

    async def get_train_fin(self) -> None:
        """Say that the training in hand is finished (`/trainFin`); nothing happens when none is."""
        await self._end(Outcome.FINISHED, None)

    async def get_train_fail(self, reason: str | None = None) -> None:
        """Say that the training in hand has failed (`/trainFail`); nothing happens when none is."""
        await self._end(Outcome.FAILED, reason)

    async def _end(self, outcome: Outcome | None, reason: str | None) -> None:
        mine = self._voice.client.facts.in_hand
        if mine is not None:
            ended = TrainingEnded(run_id=mine.run_id, attempt=mine.attempt, outcome=outcome, reason=reason)
            await self._voice.apply(ended)


class ManagerWords(_Words):
    """What a client says to its manager (FedOps client_api.ClientMangerAPI, there over HTTP)."""

    async def get_info(self) -> ManagerData:
        """Return what the manager said last about the global model (`/info`); it comes with every start."""
        return ManagerData(GL_Model_V=self._voice.client.facts.gl_model)

    async def get_train_out(self, reason: str | None) -> None:
        """Say that the run was over before this client joined: its start is rejected after all, nothing failed."""
        await self._end(None, reason)

    async def get_train_stopped(self, reason: str | None) -> None:
        """Say that the training in hand was stopped."""
        await self._end(Outcome.STOPPED, reason)


class ServerWords(_Words):
    """What a client asks of FedOps' server manager (FedOps client_api.ClientServerAPI, there over HTTP)."""

    async def get_port(self) -> str | None:
        """Return `host:port` of the FL server of the last start (`FLSe/getPort`); None before the first."""
        return self._voice.client.server_ip
