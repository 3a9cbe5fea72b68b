"""The demo's processes: each with a log of its own, all of them ended when the block is left, however it is left.

The reaper ends them (see `reaper`), also when this process is killed.
"""

import asyncio
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedops_mqtt.demo.reaper import KEEP, MARK
from fedops_mqtt.runtime.processes import read_tail
from fedops_mqtt.runtime.settings import ENV_PREFIX, environment_without_settings


class DemoError(Exception):
    """The demo cannot go on."""


class ProcessEndedError(DemoError):
    """A process of the demo ended too early; its last lines are in the message."""

    def __init__(self, name: str, status: int, log: str) -> None:
        self.name = name
        self.status = status
        super().__init__(f"{name} ended with status {status}. Its last lines:\n{log}")


class Processes:
    """All processes of one demo, as an async context manager.

    Args:
        models: folder for the global model; removed with the rest unless `keep_models` is called.
    """

    def __init__(self, models: Path) -> None:
        self.models = models
        self.folder = Path(tempfile.gettempdir()) / f"fedops-demo-{uuid.uuid4().hex[:12]}"
        self._mark = uuid.uuid4().hex
        self._reaper: asyncio.subprocess.Process | None = None
        self._watchers: asyncio.TaskGroup | None = None
        self._watched: list[asyncio.Task[None]] = []
        self._report_end: Callable[[str], None] | None = None

    async def __aenter__(self) -> Self:
        # The reaper starts first, so that it ends all others.
        command = (sys.executable, "-m", "fedops_mqtt.demo.reaper", self._mark, str(self.folder), str(self.models))
        self._reaper = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        try:
            self.folder.mkdir(mode=0o700)
            self.models.mkdir(parents=True)
        except OSError:
            await self._clear_up()
            raise
        self._watchers = asyncio.TaskGroup()
        await self._watchers.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for watcher in self._watched:
            watcher.cancel()
        try:
            if self._watchers is not None:
                await self._watchers.__aexit__(kind, error, traceback)
        finally:
            await self._clear_up()

    async def start(self, name: str, verb: str, *arguments: str, **settings: object) -> asyncio.subprocess.Process:
        """Start `fedops-mqtt VERB`; `settings` go through its environment. Its early end ends the demo."""
        process = await self._spawn(name, (verb, *arguments), asyncio.subprocess.DEVNULL, settings)
        self._watch(name, process)
        return process

    async def start_and_read_line(
        self, name: str, verb: str, *arguments: str, timeout_s: float, **settings: object
    ) -> str:
        """Start `fedops-mqtt VERB` and return the first line that it prints.

        Raises:
            DemoError: it printed none in time.
        """
        process = await self._spawn(name, (verb, *arguments), asyncio.subprocess.PIPE, settings)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await process.stdout.readline()
        except TimeoutError as error:
            raise DemoError(f"{name} printed nothing within {timeout_s:g} s:\n{self.log_tail(name)}") from error
        if not line:
            raise ProcessEndedError(name, await process.wait(), self.log_tail(name))
        self._watch(name, process)
        return line.decode().strip()

    def keep_models(self) -> None:
        """Keep the model folder when everything else is removed."""
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.write(KEEP)

    def let_end(self, report: Callable[[str], None]) -> None:
        """From now on report the end of a process instead of failing: a person may kill one to see what happens."""
        self._report_end = report

    def hurry(self) -> None:
        """Kill the processes that still run, now."""
        if self._reaper is not None and self._reaper.returncode is None:
            self._reaper.terminate()

    def log_tail(self, name: str) -> str:
        """Return the last lines of a process's log."""
        return read_tail(self.folder / f"{name}.log")

    async def _spawn(
        self, name: str, command: Sequence[str], stdout: int, settings: dict[str, object]
    ) -> asyncio.subprocess.Process:
        own = {MARK: self._mark, "TMPDIR": str(self.folder)}
        own |= {f"{ENV_PREFIX}{setting.upper()}": str(value) for setting, value in settings.items()}
        with (self.folder / f"{name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fedops_mqtt.cli", *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
                env={**environment_without_settings(), **own},
                start_new_session=True,
            )

    def _watch(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert self._watchers is not None
        self._watched.append(self._watchers.create_task(self._wait_end(name, process), name=f"demo-{name}"))

    async def _wait_end(self, name: str, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        if self._report_end is None:
            raise ProcessEndedError(name, status, self.log_tail(name))
        self._report_end(f"{name} ended with status {status}; everything else goes on, Ctrl-C ends it")

    async def _clear_up(self) -> None:
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
            await self._reaper.wait()
