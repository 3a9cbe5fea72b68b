"""Has a FedOps client do a training: over the line through a gateway, or straight at a classic gRPC server.

A daemon's trainer like any other: it starts, is steered, and reports how it ended, once, whatever the old client does.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedops_mqtt.bridge.peer_state import FedOpsHttpError, PeerState
from fedops_mqtt.bridge.start_call import (
    OUTCOME_REASONS,
    BridgeLimits,
    OnReport,
    PeerTraining,
    StartCall,
    failed_to_start,
)
from fedops_mqtt.core.client import Identity
from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.device.trainer import Scalar, Training
from fedops_mqtt.protocol import Outcome, Phase, ReasonCode, RunStart, Transport
from fedops_mqtt.runtime.settings import ClientSettings
from fedops_mqtt.training.pipe import EndedReport

_CANNOT_STOP = "a FedOps client cannot be stopped; it trains on by itself"


class DirectTraining(PeerTraining):
    """A FedOps client at a classic gRPC server: after its start, its own report is all there is."""

    def __init__(self, call: StartCall, start: RunStart, settings: ClientSettings, on_report: OnReport) -> None:
        super().__init__(call, on_report)
        self._start = start
        self._run_limit_s = settings.run_limit_s
        self._stop: asyncio.Future[tuple[str, ReasonCode | None]] = asyncio.get_running_loop().create_future()

    def redirect(self, server_ip: str, launch: int) -> None:
        """An old client looks for a server once only."""
        self.stop(f"the FL server was launched again at {server_ip}, and a FedOps client asks for its address once")

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """Wait no longer for the client."""
        if not self._stop.done():
            self._stop.set_result((reason, code))

    async def train(self) -> EndedReport:
        """Start the client and wait for its report."""
        self._on_report(PhaseReport(phase=Phase.JOINING))
        try:
            await self._call.to(self._start.server_ip, may_be_there=True)
        except FedOpsHttpError as error:
            self._call.link.hurry.set()
            return failed_to_start(error)
        self._on_report(PhaseReport(phase=Phase.TRAINING))
        return await self._until_outcome()

    async def _until_outcome(self) -> EndedReport:
        async with asyncio.TaskGroup() as group:
            outcome = group.create_task(self._call.link.until_outcome(), name="bridged-outcome")
            await asyncio.wait((outcome, self._stop), timeout=self._run_limit_s, return_when=asyncio.FIRST_COMPLETED)
            if outcome.done():
                return EndedReport(outcome=outcome.result(), reason=OUTCOME_REASONS[outcome.result()])
            outcome.cancel()
        if self._stop.done():
            reason, code = self._stop.result()
            return EndedReport(outcome=Outcome.STOPPED, reason=f"{reason} ({_CANNOT_STOP})", reason_code=code)
        return EndedReport(outcome=Outcome.FAILED, reason=f"run limit of {self._run_limit_s:g} s passed")


class HttpTrainer:
    """Makes trainings of a FedOps client, started over HTTP; a `device.trainer.AnyTrainer`.

    `grpc_gateways` is the gRPC address for this client (`host:port`). `turn` is held while a client is started, because
    the requests that it sends then (`getPort`) do not name their sender.
    """

    def __init__(
        self,
        *,
        peer_state: PeerState,
        grpc_gateways: str,
        turn: asyncio.Lock,
        limits: BridgeLimits,
        identity: Identity,
        settings: ClientSettings,
        folder: Path,
        import_paths: Sequence[str],
        run_config: Mapping[str, Scalar],
        on_report: OnReport,
    ) -> None:
        self._peer_state = peer_state
        self._gateway_address = grpc_gateways
        self._turn = turn
        self._limits = limits
        self._identity = identity
        self._settings = settings
        self._on_report = on_report

    async def keep_ready(self, is_idle: asyncio.Event) -> None:
        """Return at once: an old client has its own process."""

    def make(self, start: RunStart) -> Training:
        """Return the training of a start."""
        self._peer_state.gl_model = start.gl_model
        call = StartCall(
            link=self._peer_state, client_mac=self._identity.client_mac, turn=self._turn, limits=self._limits
        )
        if start.transport is Transport.GRPC:
            return DirectTraining(call, start, self._settings, self._on_report)
        from fedops_mqtt.bridge.relayed import RelayedTraining  # here flwr is imported

        return RelayedTraining(call, start, self._settings, self._identity, self._gateway_address, self._on_report)
