"""How one FedOps client is brought to an FL server, and what every way of training through it has in common."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from fedops_mqtt.bridge.peer_state import FedOpsHttpClient, FedOpsHttpError, PeerState
from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.protocol import Outcome, ReasonCode
from fedops_mqtt.training.pipe import EndedReport, MetricsReport

logger = logging.getLogger(__name__)

OnReport = Callable[[PhaseReport | MetricsReport], None]

OUTCOME_REASONS = {
    Outcome.FINISHED: "the FedOps client reported trainFin",
    Outcome.FAILED: "the FedOps client reported trainFail",
    Outcome.STOPPED: "stopped",
}


def failed_to_start(error: FedOpsHttpError) -> EndedReport:
    """Return how a training ended that could not begin; a client that is just not there may be asked again."""
    if not error.is_absent:
        return EndedReport(outcome=Outcome.FAILED, reason=str(error))
    return interrupted(str(error))


def interrupted(why: str) -> EndedReport:
    """Return how a training ended that may be tried again."""
    return EndedReport(outcome=Outcome.FAILED, reason=f"interrupted: {why}", reason_code=ReasonCode.INTERRUPTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLimits:
    """How long a FedOps client may take, s."""

    come_s: float
    """From its start until it is at the FL server."""
    report_s: float
    """From the end of the run until it has reported that itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCall:
    """Gets one FedOps client to a server."""

    link: PeerState
    client_mac: str
    turn: asyncio.Lock
    limits: BridgeLimits

    async def to(self, server_ip: str, *, may_be_there: bool = False) -> None:
        """Start the client, or let its client manager do so; returns when it reports that it trains.

        `may_be_there`: one that trains at this server already, since before this bridge was started, is left to it.

        Raises:
            FedOpsHttpError: it cannot be started, or did not in time.
        """
        if may_be_there and self.link.is_at(server_ip):
            await self.link.want(server_ip)
            return
        try:
            async with asyncio.timeout(self.limits.come_s):
                await self.link.until_idle()
        except TimeoutError as error:
            raise FedOpsHttpError(
                self.link.name, f"still trains something else after {self.limits.come_s:g} s"
            ) from error
        if self.link.peer is None:
            await self._be_fetched(server_ip)
            return
        async with self.turn:
            await self.link.want(server_ip)
            await self._start(self.link.peer, server_ip)

    async def _be_fetched(self, server_ip: str) -> None:
        """Its client manager asks every ten seconds whether there is something to do."""
        await self.link.want(server_ip)
        try:
            async with asyncio.timeout(self.limits.come_s):
                await self.link.until_training()
        except TimeoutError as error:
            problem = f"its client manager did not start it within {self.limits.come_s:g} s"
            raise FedOpsHttpError(self.link.name, problem) from error

    async def _start(self, peer: FedOpsHttpClient, server_ip: str) -> None:
        answer = await peer.start(server_ip=server_ip, client_mac=self.client_mac)
        await self.link.note_online(answer)
        if not answer.is_training:
            raise FedOpsHttpError(self.link.name, "got a start and reports that it does not train")
        if answer.server_ip not in (None, server_ip):
            logger.info("FedOps client uses another address", extra={"given": server_ip, "uses": answer.server_ip})


class PeerTraining(ABC):
    """One training through a FedOps client, a `device.trainer.Training`; how it trains is up to the subclass."""

    def __init__(self, call: StartCall, on_report: OnReport) -> None:
        self._call = call
        self._on_report = on_report

    async def run(self) -> EndedReport:
        """Train; meanwhile the client's reports are passed on."""
        self._call.link.report = self._on_report
        try:
            return await self.train()
        finally:
            self._call.link.report = None
            await self._call.link.want(None)

    @abstractmethod
    async def train(self) -> EndedReport:
        """Train to whatever end."""
