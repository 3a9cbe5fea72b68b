"""A simulation from its first process to its last: the server program, the workers, its status lines, the result.

Every process is ended when this one is left, however it is left: each of them holds a pipe whose other end is here.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedops_mqtt.core.client import Identity
from fedops_mqtt.device.training_process import exit_reason
from fedops_mqtt.protocol import Outcome, RunStart, ServerCondition, ServerMetrics, ServerStatus, decode, topics
from fedops_mqtt.protocol.topics import Topic
from fedops_mqtt.runtime.background import first_error
from fedops_mqtt.runtime.processes import read_tail, terminate
from fedops_mqtt.runtime.settings import ENV_PREFIX, environment_without_settings
from fedops_mqtt.runtime.task_config import flatten, read_configuration
from fedops_mqtt.simulation.worker import Result, Work
from fedops_mqtt.training.pipe import Job

_GRACE_S = 5.0
"""For a final status, before what is left is killed."""
_MAX_LINE_BYTES = 16 * 1024**2
_ONE_CORE = {"OMP_NUM_THREADS": "1"}
"""Each worker trains one client at a time, and there is one worker a core."""


class SimulationError(Exception):
    """A simulation cannot go on; the message names why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """What is simulated. `app` is MODULE:ATTRIBUTE, `server` a program; both run as they are on devices and servers."""

    app: str
    server: Path
    num_clients: int
    num_rounds: int
    num_workers: int
    task_id: str
    folder: Path
    """What clients and server keep, global models among it."""
    task_config: Path | None = None
    """The YAML that an app finds in its configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """How it went; `clients` are those that did not finish, with the reason."""

    outcome: str
    reason: str
    rounds: int
    metrics: Mapping[str, float]
    model_path: str | None
    seconds: float
    failed_clients: Mapping[str, str] = field(default_factory=dict)


async def simulate(
    options: SimulationOptions, on_round: Callable[[ServerMetrics], None] = lambda metrics: None
) -> SimulationResult:
    """Run one federated run to its end.

    Raises:
        SimulationError: the server program ended before the run did.
    """
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        server = await _start_server(options, stack)
        status = await server.until(lambda status: status.server_ip is not None or status.status.is_final, on_round)
        playing: list[asyncio.Task[list[Result]]] = []
        if not status.status.is_final:
            try:
                status, playing = await _see_through(options, server, str(status.server_ip), stack, on_round)
            except BaseExceptionGroup as errors:
                raise first_error(errors) from errors
    results = [result for each in playing if not each.cancelled() for result in each.result()]
    return SimulationResult(
        outcome="completed" if status.status is ServerCondition.FINISHED else status.status.value,
        reason=status.reason or "",
        rounds=status.round,
        metrics={name: value for name, value in status.metrics.items() if value is not None},
        model_path=status.model_path,
        seconds=round(time.monotonic() - began, 3),
        failed_clients={each.client_mac: each.reason for each in results if each.outcome is not Outcome.FINISHED},
    )


async def _see_through(
    options: SimulationOptions,
    server: "_Server",
    server_ip: str,
    stack: AsyncExitStack,
    on_round: Callable[[ServerMetrics], None],
) -> tuple[ServerStatus, list[asyncio.Task[list[Result]]]]:
    """Play the clients until the server's final status has come; without clients the server is stopped."""
    async with asyncio.TaskGroup() as group:
        playing = [
            group.create_task(_play(share, options, stack), name=f"worker-{at}")
            for at, share in enumerate(_shares(options, server_ip))
        ]
        ending = group.create_task(server.until(lambda status: status.status.is_final, on_round), name="server")
        left = set(playing)
        while left and not ending.done():
            _, pending = await asyncio.wait({*left, ending}, return_when=asyncio.FIRST_COMPLETED)
            left &= pending
        await asyncio.wait({ending}, timeout=_GRACE_S)
        if not ending.done():
            server.stop("no client is left, each has ended")
        status = await ending
        if left:
            await asyncio.wait(left, timeout=_GRACE_S)
        for each in playing:
            each.cancel()
    return status, playing


class _Server:
    """The server program, seen through its pipe."""

    def __init__(
        self, process: asyncio.subprocess.Process, output: asyncio.StreamReader, task_id: str, log: Path
    ) -> None:
        self._process = process
        self._log = log
        self._stop_reason = _stop_reason_file(log)
        self._output = output
        self._topics: tuple[Topic, ...] = (topics.server_metrics(task_id), topics.server_status(task_id))

    def stop(self, reason: str) -> None:
        """Ask it to end the run."""
        if self._process.returncode is None:
            self._stop_reason.write_text(reason, encoding="utf-8")
            self._process.terminate()

    async def until(
        self, is_it: Callable[[ServerStatus], bool], on_round: Callable[[ServerMetrics], None]
    ) -> ServerStatus:
        while line := await self._output.readline():
            message = self._decode(line)
            if isinstance(message, ServerMetrics):
                on_round(message)
            elif is_it(message):
                return message
        raise SimulationError(_too_early(await self._process.wait(), self._log))

    def _decode(self, line: bytes) -> ServerMetrics | ServerStatus:
        topic = self._topics["seq" in json.loads(line)]  # at the top: a metric may have any name
        message = decode(topic, line.rstrip())
        assert isinstance(message, ServerMetrics | ServerStatus)
        return message


def _stop_reason_file(log: Path) -> Path:
    return log.with_suffix(".stop-reason")


def _too_early(status: int, log: Path) -> str:
    return f"the server program ended with status {status} before the run did. Its last lines:\n{read_tail(log)}"


async def _start_server(options: SimulationOptions, stack: AsyncExitStack) -> _Server:
    read, write = os.pipe()
    log = options.folder / "server.log"
    _stop_reason_file(log).unlink(missing_ok=True)
    settings = {
        "task_id": options.task_id,
        "run_id": f"simulation-{os.getpid()}-{time.time_ns() // 1_000_000}",
        "launch": 1,
        "num_rounds": options.num_rounds,
        "min_clients": options.num_clients,
        "store": (options.folder / "models").resolve(),
        "state_dir": (options.folder / "server").resolve(),
        "listen": "127.0.0.1:0",
        "join_limit_s": _JOIN_S,
        "rejoin_limit_s": _LOST_S,
        "stop_reason_file": _stop_reason_file(log).resolve(),
        "report_fd": write,
    }
    with log.open("wb") as file:
        output: dict[str, Any] = {"stdout": file, "stderr": file, "pass_fds": (write,)}
        process = await _spawn(
            stack, str(options.server.resolve()), cwd=options.server.parent, settings=settings, **output
        )
    os.close(write)
    status_lines = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
    pipe = os.fdopen(read, "rb")
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(status_lines), pipe
    )
    stack.callback(transport.close)
    return _Server(process, status_lines, options.task_id, log)


async def _play(jobs: Sequence[Job], options: SimulationOptions, stack: AsyncExitStack) -> list[Result]:
    worker = await _spawn(
        stack,
        "-m",
        "fedops_mqtt.simulation.worker",
        cwd=options.folder,
        defaults=_ONE_CORE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(Work(jobs=tuple(jobs)).model_dump_json().encode() + b"\n")
    results: dict[str, Result] = {}
    while line := await worker.stdout.readline():
        result = Result.model_validate_json(line)
        results[result.client_mac] = result
    lost = [mac for job in jobs if (mac := job.identity.client_mac) not in results]
    if lost:
        reason = f"its worker has ended: {exit_reason(await worker.wait())}"
        results |= {mac: Result(client_mac=mac, outcome=Outcome.FAILED, reason=reason) for mac in lost}
    return list(results.values())


def _shares(options: SimulationOptions, server_ip: str) -> list[list[Job]]:
    jobs = [_job(options, number, server_ip) for number in range(options.num_clients)]
    return [share for at in range(options.num_workers) if (share := jobs[at :: options.num_workers])]


def _job(options: SimulationOptions, number: int, server_ip: str) -> Job:
    cfg = read_configuration(options.task_config) if options.task_config else {}
    return Job(
        app=options.app,
        import_paths=(os.getcwd(), str(options.server.resolve().parent)),
        identity=Identity(
            task_id=options.task_id,
            client_mac=f"02:00:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}",
            client_name=f"virtual-{number}",
            instance=f"simulation-{number}",
        ),
        start=RunStart(run_id="simulation", attempt=1, launch=1, server_ip=server_ip),
        state_folder=options.folder.resolve() / f"client-{number}",
        join_s=_JOIN_S,
        rejoin_s=_JOIN_S,
        partition_id=number,
        num_partitions=options.num_clients,
        run_config=flatten(cfg),
    )


_JOIN_S = 300.0
"""On one machine many frameworks may be imported at once."""
_LOST_S = 10.0
"""For a client whose connection broke; one whose worker has ended never comes back."""


async def _spawn(
    stack: AsyncExitStack,
    *arguments: str,
    cwd: Path,
    settings: Mapping[str, object] | None = None,
    defaults: Mapping[str, str] | None = None,
    **how: Any,
) -> asyncio.subprocess.Process:
    mine = environment_without_settings()
    environment = {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in (settings or {}).items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=cwd,
        env={**(defaults or {}), **mine, **environment},
        start_new_session=True,
        **how,
    )
    stack.push_async_callback(terminate, process, grace_s=_GRACE_S)
    return process
