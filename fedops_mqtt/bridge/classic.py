"""A FedOps FL server on classic gRPC, as it is shown on the bus: the bridge owns its status, because it cannot itself.

What it reports (FedOps server_api: FLSeUpdate, gl_model_evaluation, server_time_result, FLRoundFin) is kept in a
file, so that a bridge that was away goes on with the same run. Whether it lives is seen at its port.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fedops_mqtt.aggregation.status_publisher import ServerSnapshot
from fedops_mqtt.bridge.client_proxy import CANNOT_SERVE, RETRY_S, problem_of
from fedops_mqtt.bus import (
    BusOptions,
    ConflictingInstanceError,
    EpochFile,
    Publication,
    PublishQueue,
    StatusOwner,
    client_id_of,
    new_instance,
)
from fedops_mqtt.protocol import RunId, ServerCondition, ServerMetrics, TaskId, Transport, topics, utc_now
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.files import write_atomically
from fedops_mqtt.runtime.machine import accepts_connections, split_address

logger = logging.getLogger(__name__)

_FINAL_STATUS_S = 10.0
"""The end of a run waits this long for the broker."""
_MISSES = 3
"""One probe may be lost to a full backlog, one to a busy machine."""
_STORE_S = 300.0
"""A large model takes its time to S3."""


class ClassicRun(BaseModel):
    """What is known of one run of a FedOps FL server."""

    # A diverged loss is kept as it is: null would be no number when it is read again.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    task_id: TaskId
    run_id: RunId
    server_ip: str
    status: ServerCondition = ServerCondition.STARTING
    reason: str | None = None
    round: int = 0
    gl_model: int = 0
    metrics: dict[str, float] = {}
    are_rounds_done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassicOptions:
    """Where and how classic servers are served; `start_s` is the time from FLSeUpdate to a port that answers."""

    reach: Callable[[str], tuple[str, BusOptions]]
    """By task: the broker's URL, and who its server is there."""
    state_dir: Path
    heartbeat_s: float
    probe_s: float
    start_s: float
    agent: dict[str, str] = field(default_factory=dict)


class ClassicServer:
    """One run of one task's FedOps FL server. `run` it as a task; the rest may be called while it runs."""

    def __init__(self, run: ClassicRun, options: ClassicOptions) -> None:
        self._run = run
        self._options = options
        self._instance = new_instance()
        self._ended = asyncio.Event()
        self.is_closed = asyncio.Event()
        """Set when nothing more is published for it."""
        self._metrics = PublishQueue()
        self._owner = StatusOwner(
            topic=topics.server_status(run.task_id),
            instance=self._instance,
            make_snapshot=lambda stamp: self._snapshot.to_status(*stamp),
            make_will=lambda stamp: self._snapshot.to_will(*stamp),
            make_goodbye=lambda stamp, reason: self._snapshot.to_will(*stamp, reason),
            epochs=EpochFile(options.state_dir / "bridge" / f"{run.task_id}.epoch"),
            heartbeat_s=options.heartbeat_s,
        )

    @property
    def known(self) -> ClassicRun:
        """The run as it is now."""
        return self._run

    @property
    def is_over(self) -> bool:
        """True once it is known how it ended."""
        return self._run.status.is_final

    async def run(self) -> None:
        """Publish for the server until its run is over and that has been published."""
        self._keep()
        try:
            async with alongside(self._watch(), name=f"probe-{self._run.task_id}"):
                while not await self._serve() and not self._ended.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(RETRY_S):
                            await self._ended.wait()
        finally:
            self.is_closed.set()
        if self.is_over:
            _file_of(self._options.state_dir, self._run.task_id).unlink(missing_ok=True)

    async def _serve(self) -> bool:
        """Publish until the run has ended; False if that could not be begun or went wrong."""
        try:
            url, options = self._options.reach(self._run.task_id)
            on_bus = self._owner.on_bus(
                url, client_id=client_id_of(options.user), options=options, observers=[self._metrics.take]
            )
            async with on_bus as bus:
                async with alongside(self._metrics.run(bus), name=f"metrics-{self._run.task_id}"):
                    await self._ended.wait()
                await self._metrics.flush(bus)
                await self._owner.flush(_FINAL_STATUS_S)
        except ConflictingInstanceError as error:
            logger.warning("another process publishes for this task's FL server now", extra={"why": str(error)})
        except CANNOT_SERVE as error:
            facts = {"task_id": self._run.task_id, "problem": problem_of(error)}
            logger.error("cannot publish for a FedOps server", extra=facts)
            return False
        return True

    def note_evaluation(self, *, round_: int, metrics: dict[str, float], duration_s: float | None) -> None:
        """A round is done."""
        self._change(status=ServerCondition.RUNNING, round=round_, metrics=metrics)
        message = ServerMetrics(
            task_id=self._run.task_id,
            run_id=self._run.run_id,
            round=round_,
            metrics=metrics,
            duration_s=duration_s,
            gl_model=self._run.gl_model,
            at=utc_now(),
        )
        self._metrics.put(Publication(topic=topics.server_metrics(message.task_id), message=message))

    def note_rounds_done(self) -> None:
        """It has reported how long all its rounds took, which it does only after the last one."""
        self._change(are_rounds_done=True)

    def note_problem(self, problem: str) -> None:
        """It has reported that something went wrong; the end is still to come."""
        self._change(reason=problem)

    def note_end(self, reason: str = "the FedOps server reported that its round is over") -> None:
        """It is over: well if all rounds were done and nothing was wrong."""
        is_good = self._run.are_rounds_done and self._run.reason is None
        status = ServerCondition.FINISHED if is_good else ServerCondition.FAILED
        self._change(status=status, reason=self._run.reason or reason)
        self._ended.set()

    def leave(self) -> None:
        """Stop publishing_through for it; a bridge that comes back goes on."""
        self._ended.set()

    def _change(self, **changes: Any) -> None:
        if self.is_over:
            return
        before = self._run
        self._run = before.model_copy(update=changes)
        if before.status is not self._run.status:
            facts = {"task_id": before.task_id, "run_id": before.run_id, "status": self._run.status.value}
            logger.info("FedOps server's status changed", extra=facts)
        self._keep()
        self._owner.update()

    def _keep(self) -> None:
        path = _file_of(self._options.state_dir, self._run.task_id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, self._run.model_dump_json().encode())
        except OSError as error:
            logger.error("FedOps server's run is not kept", extra={"path": str(path), "why": str(error)})

    async def _watch(self) -> None:
        """Publish *ready* once its port answers, and *lost* when it does not any more."""
        deadline = time.monotonic() + self._options.start_s
        misses = 0
        while not self.is_over:
            if await accepts_connections(*split_address(self._run.server_ip), within_s=self._options.probe_s):
                misses = 0
                if self._run.status is ServerCondition.STARTING:
                    self._change(status=ServerCondition.READY)
            elif self._run.status is not ServerCondition.STARTING:
                misses += 1
            if misses >= self._misses_allowed():
                self._lose("the FedOps server ended without a report")
            elif self._run.status is ServerCondition.STARTING and time.monotonic() > deadline:
                self._lose(f"no gRPC server at {self._run.server_ip} within {self._options.start_s:g} s")
            await asyncio.sleep(self._options.probe_s)

    def _misses_allowed(self) -> int:
        """After its last round a FedOps server stops listening, and reports its end once its model is stored."""
        if not self._run.are_rounds_done:
            return _MISSES
        return max(_MISSES, math.ceil(_STORE_S / self._options.probe_s))

    def _lose(self, problem: str) -> None:
        """Nobody listens any more: after the last round that is its end, else a loss."""
        if not self._run.are_rounds_done:
            self.note_problem(problem)
        self.note_end(problem)

    @property
    def _snapshot(self) -> ServerSnapshot:
        return ServerSnapshot(
            **self._run.model_dump(exclude={"are_rounds_done"}),
            launch=_LAUNCH,
            instance=self._instance,
            heartbeat_s=self._options.heartbeat_s,
            agent=self._options.agent,
            transport=Transport.GRPC,
        )


_LAUNCH = 1
"""A FedOps server is launched elsewhere, once a run."""


def load_runs(state_dir: Path) -> list[ClassicRun]:
    """Return the runs that an earlier bridge has not seen the end of."""
    runs = []
    for path in sorted((state_dir / "bridge").glob("*.run.json")):
        try:
            runs.append(ClassicRun.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            logger.warning("a kept run cannot be read", extra={"path": str(path), "why": str(error)})
    return [run for run in runs if not run.status.is_final]


def new_run_id() -> str:
    """Return an id for a run that a FedOps server has begun; later ones sort after earlier ones."""
    return f"fedops-{utc_now():%Y%m%d-%H%M%S-%f}"


def _file_of(state_dir: Path, task_id: str) -> Path:
    return state_dir / "bridge" / f"{task_id}.run.json"
