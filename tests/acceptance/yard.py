"""The installed command as processes: started with captured output, waited for under a timeout, cleared up by mark."""

import asyncio
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import psutil
from device_plan import FOLDER
from reader import Observer

from fedops_mqtt import AsyncManagerClient
from fedops_mqtt.demo.reaper import end_marked, marked
from fedops_mqtt.protocol import ClientCondition

HERE = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("fedops-mqtt")
MARK = "FEDOPS_TEST"
"""Environment variable that every process of a test inherits."""
TIMEOUT_S = 300.0
"""Means "hangs", on a machine ten times slower too."""
POLL_S = 0.02


T = TypeVar("T")


async def eventually(look: Callable[[], T], *, timeout_s: float = TIMEOUT_S) -> T:
    """Look again and again until there is something; for what no message tells."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(POLL_S)


def peak_bytes(pid: int) -> int:
    """Return the most that a process ever had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class Installed:
    """One process; what it says goes to files, so that nothing blocks and everything can be read later."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.name = name
        self.process = process
        self._folder = folder

    @property
    def stdout(self) -> str:
        return (self._folder / f"{self.name}.out").read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return (self._folder / f"{self.name}.err").read_text(encoding="utf-8", errors="replace")

    async def until_printed(self, pattern: str, *, timeout_s: float = TIMEOUT_S) -> re.Match[str]:
        """Wait for a line on stdout or stderr that the pattern matches."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = re.search(pattern, self.stdout, re.MULTILINE) or re.search(pattern, self.stderr, re.MULTILINE)
            if found:
                return found
            assert time.monotonic() < deadline, f"{self.name} never said {pattern!r}:\n{self.stdout}\n{self.stderr}"
            assert self.process.returncode is None, f"{self.name} ended:\n{self.stdout}\n{self.stderr}"
            await asyncio.sleep(POLL_S)

    async def wait(self, *, timeout_s: float = TIMEOUT_S) -> int:
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await self.wait()


class Yard:
    """Starts processes of one test; leaves none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self._started: list[Installed] = []

    async def start(
        self,
        *arguments: str,
        command: Path | str = COMMAND,
        cwd: Path = HERE,
        environment: Mapping[str, str] = MappingProxyType({}),
        **settings: object,
    ) -> Installed:
        """Start `fedops-mqtt ARGUMENTS`; settings go through its environment, to which `environment` adds."""
        name = f"{len(self._started) + 1}-{arguments[0] if arguments else 'process'}".replace("/", "_")
        said = {f"FEDOPS_MQTT_{setting.upper()}": str(value) for setting, value in settings.items()}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FEDOPS_")}
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            process = await asyncio.create_subprocess_exec(
                str(command),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env={
                    **inherited,
                    MARK: self.mark,
                    FOLDER: str(self.folder),
                    "PYTHONUNBUFFERED": "1",
                    "FEDOPS_MQTT_CHECK_APP": "false",  # two seconds of a processor for each daemon
                    **environment,
                    **said,
                },
                start_new_session=True,
            )
        self._started.append(Installed(name, process, self.folder))
        return self._started[-1]

    async def run(self, *arguments: str, timeout_s: float = TIMEOUT_S, **settings: object) -> Installed:
        """Start a verb and wait for its end."""
        process = await self.start(*arguments, **settings)
        await process.wait(timeout_s=timeout_s)
        return process

    async def clear_up(self) -> None:
        """Kill what is left, and show what each said; a demo's keeper is given the time for its own work."""
        for started in self._started:
            ended = started.process.returncode
            print(f"{started.name}: {'ran' if ended is None else f'had ended with {ended}'}\n{started.stderr[-2000:]}")
            if ended is None:
                started.process.kill()
                await started.wait()
        keepers = [each for each in marked(self.mark, MARK) if "fedops_mqtt.demo.reaper" in each.cmdline()]
        await asyncio.to_thread(psutil.wait_procs, keepers, TIMEOUT_S)
        await asyncio.to_thread(end_marked, self.mark, is_hurried=lambda: True, name=MARK)
        assert not list(marked(self.mark, MARK))


class Site:
    """A broker, a task, and the processes of one test around them."""

    def __init__(self, yard: Yard, broker: str, task_id: str, observer: Observer, *, has_page: bool = False) -> None:
        self.yard = yard
        self.has_page = has_page
        self.broker = broker
        self.task_id = task_id
        self.observer = observer
        self.manager_url = ""

    async def start_client(self, mac: str, app: str = "fedops_mqtt.demo:client_app", **settings: object) -> Installed:
        level = mac.replace(":", "-")
        fields = {"broker": self.broker, "task_id": self.task_id, "app": app, "mac": mac, "heartbeat_s": 5}
        return await self.yard.start("client", state_dir=self.yard.folder / level, **fields | settings)

    async def start_clients(
        self, count: int, app: str = "fedops_mqtt.demo:client_app", **settings: object
    ) -> dict[str, Installed]:
        """Start clients and wait until all are online."""
        macs = [f"02:00:00:00:01:{number:02x}" for number in range(1, count + 1)]
        clients = {
            mac: await self.start_client(mac, app, partition_id=number, num_partitions=count, **settings)
            for number, mac in enumerate(macs)
        }
        for mac in macs:
            await self.observer.until_client(mac, ClientCondition.ONLINE)
        return clients

    def write_tasks(
        self,
        *,
        module: str = "fedops_mqtt.demo.server",
        args: Sequence[str] = (),
        more: str = "",
        program_cwd: Path = HERE,
    ) -> Path:
        """Write the manager's tasks file: this one task, started where modules of the tests are found."""
        tasks = self.yard.folder / "tasks.toml"
        lines = [
            f"[tasks.{self.task_id}]",
            f'module = "{module}"',
            f"args = {list(args)}",
            f'cwd = "{program_cwd}"',
            more,
        ]
        tasks.write_text("\n".join(lines))
        return tasks

    async def start_manager(
        self,
        *,
        module: str = "fedops_mqtt.demo.server",
        server_args: Sequence[str] = (),
        more: str = "",
        program_cwd: Path = HERE,
        **settings: object,
    ) -> Installed:
        """Start a manager and wait until it leads; `more` are further lines of the task's table."""
        tasks = self.write_tasks(module=module, args=server_args, more=more, program_cwd=program_cwd)
        manager = await self.launch_manager(tasks, **settings)
        await self.until_leading(manager)
        return manager

    async def until_leading(self, manager: Installed) -> int:
        """Wait until a manager leads, and ask it from now on; returns its term."""
        leads = await manager.until_printed(r"manager leads \(term (\d+)\), API at (\S+)")
        self.manager_url = leads.group(2)
        return int(leads.group(1))

    async def launch_manager(self, tasks: Path, *program: str, **settings: object) -> Installed:
        """Start a manager, which may have to wait for another one; `program` stands before the verb."""
        given = {
            "broker": self.broker,
            "tasks_file": tasks,
            "http": "127.0.0.1:0",
            "state_dir": self.yard.folder / "manager",
            "store": self.yard.folder / "models",
            "heartbeat_s": 5,
        }
        more = {} if self.has_page else {"PYTHONPATH": str(HERE / "without_page")}
        return await self.yard.start(*program, "manager", environment=more, **given | settings)

    async def start_run(self, **fields: object) -> str:
        """Ask the manager for a run and return its id; what the verb `start` does is tested elsewhere."""
        async with self.manager_client() as api:
            return (await api.start(self.task_id, **fields)).run_id

    async def ask(self, path: str) -> dict[str, object]:
        """Return the JSON that the manager answers, as it is: tests check its form too."""
        async with self.manager_client() as api:
            return dict(await api.request("GET", path))

    def manager_client(self) -> AsyncManagerClient:
        """Return a client, to be entered, of the manager that leads."""
        return AsyncManagerClient(self.manager_url, timeout_s=TIMEOUT_S)
