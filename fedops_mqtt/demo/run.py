"""The demo from its first process to its last line: start a fleet, run one federated run, print its result.

What it shows comes from the bus, as any dashboard would; it asks the manager's API only to start and for the result.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from fedops_mqtt.bus import Bus, BusError, BusOptions, connect
from fedops_mqtt.bus.fleet_view import FleetView, Record
from fedops_mqtt.core.run import ACCURACY, measure
from fedops_mqtt.demo.processes import DemoError, Processes
from fedops_mqtt.manager.client import AsyncManagerClient, ManagerClientError
from fedops_mqtt.protocol import RunCondition, RunOutcome, visible
from fedops_mqtt.runtime.background import alongside, first_error
from fedops_mqtt.runtime.systemd import ExitCode, end_signals

TASK_ID = "digits"

_START_S = 90.0
"""Until everybody is online: Python starts once a client, and a small machine has two cores for all of them."""
_ANSWER_S = 15.0
_RUN_LIMIT_S = 1800.0
_SETTLE_S = 5.0
"""After the run's end, until each client has reported its own; the manager's grace is too long for a demo."""
_LINGER_S = 1.0
"""Of the FL server, which has its setting from the manager's environment: on one machine nobody is far away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What was asked for; `folder` receives a folder of its own for each demo."""

    num_clients: int = 5
    num_rounds: int = 5
    folder: Path = Path(".demo")
    is_json: bool = False
    is_kept: bool = False


class Screen(Protocol):
    """What shows a demo to a person."""

    def print_line(self, sentence: str) -> None:
        """Print a sentence; control characters are shown."""

    def note(self, change: Record) -> None:
        """Show a change."""

    def showing(self, fleet_view: FleetView) -> AbstractAsyncContextManager[None]:
        """Show the view while the block runs."""


async def run_demo(options: DemoOptions, screen: Screen) -> int:
    """Run the demo and return the exit status: 0 only when the run completed."""
    models = options.folder / datetime.now().strftime("%Y-%m-%d_%H-%M-%S.%f")
    processes = Processes(models.resolve())
    demo = Demo(options, processes, screen)
    try:
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(demo.play(), name="demo")
            _end_on_signals(playing, processes)
    except BaseExceptionGroup as errors:
        error = first_error(errors)
        if not isinstance(error, DemoError | BusError | OSError):
            raise
        advice = "; choose a folder that can be written with --folder" if isinstance(error, OSError) else ""
        print(f"fedops-mqtt demo: {error}{advice}", file=sys.stderr)
        return ExitCode.FAILED
    return demo.status


def _end_on_signals(playing: "asyncio.Task[None]", processes: Processes) -> None:
    """The first signal ends the demo in order, a second one at once; none of them leaves anything behind."""
    is_first = True

    def end() -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            playing.cancel()
        else:
            processes.hurry()

    for number in end_signals():
        asyncio.get_running_loop().add_signal_handler(number, end)


@dataclass
class Demo:
    """One demo."""

    options: DemoOptions
    processes: Processes
    screen: Screen
    fleet_view: FleetView = field(default_factory=FleetView)
    status: int = ExitCode.INTERRUPTED
    """Exit status; that of Ctrl-C until the run has ended."""
    _has_changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self) -> None:
        """Play it from the beginning to the end."""
        began = time.monotonic()
        async with self.processes:
            broker, manager = await self._start_fleet()
            run = await self._run(broker, manager)
            result = self._sum_up(run, time.monotonic() - began)
            self.status = ExitCode.OK if result["outcome"] == RunOutcome.COMPLETED else ExitCode.FAILED
            if self.options.is_kept:
                kept = _KEPT.format(command=_command(), broker=broker, manager=manager, task_id=TASK_ID)
                self._print_result(run, result, kept)
                self.processes.let_end(self.screen.print_line)
                await asyncio.Event().wait()
        self._print_result(run, result, _DELETED.format(command=_command()))

    async def _start_fleet(self) -> tuple[str, str]:
        """Start every process; return the broker's and the manager's URL."""
        self.screen.print_line("starting mosquitto, a manager and the client daemons")
        broker = await self.processes.start_and_read_line("broker", "broker", "--port", "0", timeout_s=_ANSWER_S)
        tasks = self.processes.folder / "tasks.toml"
        tasks.write_text(_TASKS.format(task_id=TASK_ID), encoding="utf-8")
        line = await self.processes.start_and_read_line(
            "manager",
            "manager",
            timeout_s=_START_S,
            broker=broker,
            tasks_file=tasks,
            http="127.0.0.1:0",
            state_dir=self.processes.folder / "manager",
            store=self.processes.models,
            run_s=_RUN_LIMIT_S,
            linger_s=_LINGER_S,
        )
        for number in range(self.options.num_clients):
            await self._start_client(number, broker)
        return broker, line.rpartition(" ")[2]

    async def _start_client(self, number: int, broker: str) -> None:
        await self.processes.start(
            f"client-{number + 1}",
            "client",
            broker=broker,
            task_id=TASK_ID,
            app="fedops_mqtt.demo:client_app",
            check_app=False,
            mac=f"02:00:00:00:{number // 256:02x}:{number % 256 + 1:02x}",
            client_name=f"device-{number + 1}",
            state_dir=self.processes.folder / f"client-{number + 1}",
            partition_id=number,
            num_partitions=self.options.num_clients,
        )

    async def _run(self, broker: str, manager: str) -> Record:
        """Wait until the fleet is online and a run has ended; return the manager's record of the run."""
        async with (
            connect(broker, options=BusOptions()) as bus,
            alongside(self._follow(bus), name="demo-feed"),
            self.screen.showing(self.fleet_view),
        ):
            await self._wait_for(self._is_everybody_here, _START_S, "not everybody came online")
            return await self._start_and_wait(manager)

    async def _start_and_wait(self, manager: str) -> Record:
        try:
            async with AsyncManagerClient(manager, timeout_s=_ANSWER_S) as api:
                run = await api.start(TASK_ID, num_rounds=self.options.num_rounds, min_clients=self.options.num_clients)
                ended = partial(self._has_ended, run.run_id)
                await self._wait_for(ended, _RUN_LIMIT_S + _START_S, "the run has not ended")
                with suppress(DemoError):  # so that the last screen shows all clients idle
                    await self._wait_for(self._is_nobody_training, _SETTLE_S, "somebody still trains")
                return (await api.run(run.run_id)).model_dump(mode="json")
        except ManagerClientError as error:
            raise DemoError(str(error)) from error

    async def _follow(self, bus: Bus) -> None:
        async for changes in bus.changes(self.fleet_view):
            self._has_changed.set()
            for change in changes:
                self.screen.note(change)

    async def _wait_for(self, is_true: Callable[[], bool], timeout_s: float, problem: str) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not is_true():
                    self._has_changed.clear()
                    await self._has_changed.wait()
        except TimeoutError as error:
            raise DemoError(f"{problem} within {timeout_s:g} s") from error

    def _is_everybody_here(self) -> bool:
        return sum(not view.is_out for view in self.fleet_view.fleet.clients.values()) == self.options.num_clients

    def _is_nobody_training(self) -> bool:
        return all(view.is_out or view.status.run is None for view in self.fleet_view.fleet.clients.values())

    def _has_ended(self, run_id: str) -> bool:
        view = self.fleet_view.fleet.runs.get(run_id)
        return view is not None and view.status.status is RunCondition.FINISHED

    def _sum_up(self, run: Record, seconds: float) -> Record:
        """Return how it went; the model stays when the run completed."""
        is_completed = run["outcome"] == RunOutcome.COMPLETED
        if is_completed:
            self.processes.keep_models()
        return {
            "outcome": run["outcome"],
            "accuracy": measure(run["metrics"], ACCURACY),
            "rounds": run["round"],
            "clients": sum(member["status"] == "finished" for member in run["clients"].values()),
            "trigger_to_training_ms": run["trigger_to_training_ms"],
            "seconds": round(seconds, 1),
            "model_path": run["model_path"] if is_completed else None,
        }

    def _print_result(self, run: Record, result: Record, what_next: str) -> None:
        if run["outcome"] != RunOutcome.COMPLETED:
            problem = f"fedops-mqtt demo: the run ended as {run['outcome']}: {run['reason']}"
            print(visible(problem, keep="\n\t"), file=sys.stderr)
        if self.options.is_json:
            print(json.dumps(result), flush=True)
            return
        self.screen.print_line("\n".join(("", *_describe(run, result), what_next)))


def _describe(run: Record, result: Record) -> list[str]:
    if run["outcome"] != RunOutcome.COMPLETED:
        return [f"The run did not complete: {run['reason']}"]
    delay = result["trigger_to_training_ms"] or {"p50": 0.0, "max": 0.0}
    return [
        f"The run completed: {_counted(result['rounds'], 'round')} with {_counted(result['clients'], 'client')} "
        f"in {result['seconds']:g} s, from the first process on.",
        f"Accuracy of the global model on digits that no client has seen: {result['accuracy']:.3f}",
        f"From start trigger to training: {delay['p50']:.0f} ms in the middle, {delay['max']:.0f} ms at most.",
        f"The global model: {result['model_path']}",
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _command() -> str:
    """Return the command as it can be typed here: after `make demo` it stands in a folder that PATH does not know."""
    return _NAME if shutil.which(_NAME) else os.path.relpath(Path(sys.executable).with_name(_NAME))


_NAME = "fedops-mqtt"

_DELETED = """Everything else that the demo made is deleted. To look further:
  {command} demo --keep leaves the fleet running, and prints how to watch and steer it.
  README.md, "Use it for real": the same by hand, with a task of your own."""

_KEPT = """The fleet is still running; Ctrl-C ends it. In a browser, where the extra `dashboard` is installed: {manager}
In another terminal:
  {command} watch --broker {broker}
  {command} start {task_id} --manager {manager} --wait
  {command} clients --manager {manager}"""

_TASKS = """[tasks.{task_id}]
module = "fedops_mqtt.demo.server"
"""
