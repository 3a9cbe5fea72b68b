"""A FedOps client's training over the line: the bridge joins for it, and passes each message through a gateway.

The line's runner and the gateway have threads; what they report goes into the event loop before anything is decided.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, cast

from flwr.app import Context
from flwr.clientapp import ClientApp

from fedops_mqtt.bridge.grpc_gateway import GrpcGateway
from fedops_mqtt.bridge.peer_state import FedOpsHttpError
from fedops_mqtt.bridge.start_call import (
    OUTCOME_REASONS,
    OnReport,
    PeerTraining,
    StartCall,
    failed_to_start,
    interrupted,
)
from fedops_mqtt.core.client import Identity
from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.line.client_session import RunEnd
from fedops_mqtt.line.errors import LineConfigError
from fedops_mqtt.line.runner import Joined, LineRunner, MessageAnswered, Progress, make_context
from fedops_mqtt.protocol import MetricsCutter, MetricsKind, Outcome, ReasonCode, RunStart, clip
from fedops_mqtt.runtime.machine import join_address, split_address
from fedops_mqtt.runtime.settings import ClientSettings
from fedops_mqtt.training.pipe import EndedReport, MetricsReport

logger = logging.getLogger(__name__)

_DISMISS_S = 5.0
"""A client that is dismissed answers at once; one that still computes is not waited for."""


class RelayedTraining(PeerTraining):
    """One training: join the line, start the client, pass messages on, and dismiss the client when it is over."""

    def __init__(
        self,
        call: StartCall,
        start: RunStart,
        settings: ClientSettings,
        identity: Identity,
        grpc_gateways: str,
        on_report: OnReport,
    ) -> None:
        super().__init__(call, on_report)
        self._start = start
        self._settings = settings
        self._identity = identity
        self._address = grpc_gateways
        self._cutter = MetricsCutter(logger.warning)
        self._loop = asyncio.get_running_loop()
        self._gateway: GrpcGateway | None = None
        self._runner: LineRunner | None = None
        self._joined = asyncio.Event()
        self._ended: asyncio.Future[RunEnd] = self._loop.create_future()
        self._problem: str | None = None
        self._is_disconnected = False
        self._no_start: EndedReport | None = None
        self._run_id: str | None = None

    def redirect(self, server_ip: str, launch: int) -> None:
        """The line finds its server again; the old client notices nothing."""
        if self._runner is not None:
            self._runner.redirect(server_ip, launch)

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """Leave the line, which ends everything else."""
        if self._runner is not None:
            self._runner.stop(reason, code)

    async def train(self) -> EndedReport:
        """Train to whatever end."""
        try:
            start, settings = self._start, self._settings
            self._runner = LineRunner(
                server_ip=start.server_ip,
                client_mac=self._identity.client_mac,
                instance=self._identity.instance,
                attempt=start.attempt,
                token=start.token,
                run_id=start.run_id,
                launch=start.launch,
                ca_file=settings.line_ca_file,
                join_s=settings.join_limit_s,
                rejoin_s=settings.rejoin_limit_s,
                on_progress=self._in_loop(self._report_progress),
                on_answered=self._in_loop(self._report_answered),
                on_end=self._in_loop(self._settle),
            )
            self._gateway = await asyncio.to_thread(
                GrpcGateway, self._address, on_departed=self._in_loop(self._client_disconnected)
            )
        except (OSError, LineConfigError) as error:
            return EndedReport(outcome=Outcome.FAILED, reason=str(error))
        try:
            async with asyncio.timeout(self._settings.run_limit_s):
                end = await self._train(self._gateway, self._runner)
        except TimeoutError:
            end = RunEnd(outcome=Outcome.FAILED, reason=f"run limit of {self._settings.run_limit_s:g} s passed")
        finally:
            self._gateway.give_up("the run is over")
            await asyncio.to_thread(self._gateway.dismiss, _DISMISS_S)
        return await self._final_report(end)

    async def _train(self, gateway: GrpcGateway, runner: LineRunner) -> RunEnd:
        """Run the line in a thread of its own; the client is started once the server has let us in."""
        app = cast(ClientApp, gateway.ask)  # LineRunner only calls its app
        threading.Thread(
            target=self._run_line, args=(runner, app), name=f"relay-{self._start.run_id}", daemon=True
        ).start()
        try:
            async with asyncio.TaskGroup() as group:
                calling = group.create_task(self._bring_client(gateway, runner), name="bridged-call")
                end = await asyncio.shield(self._ended)
                calling.cancel()
        finally:
            runner.stop("the bridge ends this training")
        return RunEnd(outcome=Outcome.FAILED, reason=self._problem) if self._problem else end

    async def _bring_client(self, gateway: GrpcGateway, runner: LineRunner) -> None:
        await self._joined.wait()
        host, _ = split_address(self._address)
        try:
            await self._call.to(join_address(host, gateway.port))
        except FedOpsHttpError as error:
            self._no_start = failed_to_start(error)
            self._call.link.hurry.set()
            self._give_up(self._no_start.reason or str(error), code=self._no_start.reason_code)
            return
        if not await asyncio.to_thread(gateway.wait_for_client, self._call.limits.come_s):
            self._give_up(f"FedOps client at {self._call.link.name}: did not come to gRPC port {gateway.port} in time")
            return
        outcome = await self._call.link.until_outcome()
        if outcome is Outcome.FAILED:
            self._give_up(OUTCOME_REASONS[outcome])

    def _client_disconnected(self) -> None:
        """Whether it failed or has ended is found out now; the server is informed at once of what can be taken back."""
        self._is_disconnected = True
        problem = f"the FedOps client at {self._call.link.name} has disconnected"
        self._give_up(problem, on_line=f"interrupted: {problem}", code=ReasonCode.INTERRUPTED)

    def _give_up(self, problem: str, *, on_line: str | None = None, code: ReasonCode | None = None) -> None:
        self._problem = self._problem or problem
        if self._gateway is not None:
            self._gateway.give_up(problem)
        if self._runner is not None:
            self._runner.fail(on_line or problem, code)

    async def _final_report(self, end: RunEnd) -> EndedReport:
        """The line reports the end; a client that is still here is waited for and idle when this is reported."""
        if end.is_rejected:
            return EndedReport(outcome=None, reason=end.reason or None)
        if self._no_start is not None:
            return self._no_start
        if self._is_disconnected:
            return await self._departure_reason(end.reason)
        if end.outcome is not Outcome.FINISHED:
            return EndedReport(outcome=end.outcome, reason=end.reason)
        try:
            async with asyncio.timeout(self._call.limits.report_s):
                outcome = await self._call.link.until_outcome()
        except TimeoutError:
            return EndedReport(outcome=Outcome.FINISHED, reason=f"{end.reason} (the FedOps client did not report that)")
        return EndedReport(
            outcome=outcome, reason=end.reason if outcome is Outcome.FINISHED else OUTCOME_REASONS[outcome]
        )

    async def _departure_reason(self, reason: str) -> EndedReport:
        """One that failed reports so; one that has ended may be back soon, as a device that lost its process."""
        try:
            async with asyncio.timeout(self._call.limits.report_s):
                outcome = await self._call.link.until_outcome_or_lost()
        except TimeoutError:
            return EndedReport(outcome=Outcome.FAILED, reason=reason)
        if outcome is not None:
            return EndedReport(outcome=Outcome.FAILED, reason=f"{reason}: {OUTCOME_REASONS[outcome]}")
        return interrupted(reason)

    def _run_line(self, runner: LineRunner, app: ClientApp) -> None:
        end = RunEnd(outcome=Outcome.FAILED, reason="the line ended by an error of its own; the bridge's log has it")
        try:
            end = runner.run(app, self._context)
        finally:
            self._in_loop(self._settle)(end)

    def _settle(self, end: RunEnd) -> None:
        """The first end stands: the runner has it while its thread still waits for the old client's answer."""
        if not self._ended.done():
            self._ended.set_result(end)

    def _context(self, joined: Joined) -> Context:
        self._run_id = joined.run_id
        self._loop.call_soon_threadsafe(self._joined.set)
        return make_context(joined)

    def _report_progress(self, progress: Progress) -> None:
        self._on_report(PhaseReport(phase=progress.phase, round=progress.round or 0, run_id=self._run_id))

    def _report_answered(self, answered: MessageAnswered) -> None:
        measured = self._cutter.cut(answered.metrics, num_more=2)
        values = {**measured, "stage": clip(answered.kind), "seconds": round(answered.seconds, 6)}
        self._on_report(MetricsReport(kind=MetricsKind.ROUND, round=answered.round or 0, values=values))

    def _in_loop(self, call: Callable[..., None]) -> Callable[..., None]:
        def call_in_loop(*arguments: Any) -> None:
            self._loop.call_soon_threadsafe(call, *arguments)

        return call_in_loop
