"""A FedOps client at a classic gRPC server: after its start, its own word is all there is."""

import asyncio

from fedops_mqtt.bridge.fedops_http_client import FedOpsHttpError
from fedops_mqtt.bridge.start_call import WORDS, OnReport, StartCall, failed_to_start
from fedops_mqtt.core.client_events import StartTraining
from fedops_mqtt.protocol import Outcome, Phase
from fedops_mqtt.runtime.settings import ClientSettings
from fedops_mqtt.training.pipe import EndedReport, PhaseReport

_CANNOT_STOP = "a FedOps client cannot be told to stop; it trains on by itself"


class DirectTraining:
    """A FedOps client at a classic gRPC server: after its start, its own word is all there is."""

    def __init__(self, call: StartCall, start: StartTraining, settings: ClientSettings, on_report: OnReport) -> None:
        self._call = call
        self._start = start
        self._run_limit_s = settings.run_limit_s
        self._on_report = on_report
        self._stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def redirect(self, server_ip: str, launch: int) -> None:
        """An old client looks for a server once only."""
        self.stop(f"the FL server was launched again at {server_ip}, and a FedOps client asks for its address once")

    def stop(self, reason: str) -> None:
        """Wait no longer for the client."""
        if not self._stop.done():
            self._stop.set_result(reason)

    async def run(self) -> EndedReport:
        """Start the client and wait for its word."""
        self._on_report(PhaseReport(phase=Phase.JOINING))
        try:
            await self._call.to(self._start.server_ip, may_be_there=True)
        except FedOpsHttpError as error:
            self._call.link.hurry.set()
            return failed_to_start(error)
        self._on_report(PhaseReport(phase=Phase.TRAINING))
        return await self._until_told()

    async def _until_told(self) -> EndedReport:
        async with asyncio.TaskGroup() as group:
            told = group.create_task(self._call.link.until_told(), name="bridged-word")
            await asyncio.wait((told, self._stop), timeout=self._run_limit_s, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                return EndedReport(outcome=told.result(), reason=WORDS[told.result()])
            told.cancel()
        if self._stop.done():
            return EndedReport(outcome=Outcome.STOPPED, reason=f"{self._stop.result()} ({_CANNOT_STOP})")
        return EndedReport(outcome=Outcome.FAILED, reason=f"run limit of {self._run_limit_s:g} s passed")
