"""The daemon as a process: killed, told to end, restarted, doubled, and left without its broker."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import psutil
import pytest
from client_testbed import HERE, PATIENCE_S, SECRET, Operator, ServeFl
from file_limit import with_file_limit

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.protocol import ClientCondition, Outcome, Phase, ReasonCode
from fedops_mqtt.runtime.systemd import ExitCode

MAX_IDLE_MB = 55
"""MB of 2**20 bytes, as all memory figures of the project."""


class DaemonProcess:
    """One daemon process and its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []

    async def until_log(self, text: str) -> str:
        """Read the log up to a line with `text` in it."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := (await self.process.stderr.readline()).decode():
                self.log.append(line)
                if text in line:
                    return line
        raise AssertionError(f"log ended without {text!r}: {self.log}")

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the exit."""
        self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


SpawnDaemon = Callable[..., "asyncio.Future[DaemonProcess]"]


@pytest.fixture
async def spawn_daemon(broker: Mosquitto, task_id: str, mac: str, tmp_path: Path) -> AsyncIterator[SpawnDaemon]:
    async with AsyncExitStack() as stack:

        async def spawn(*, max_file_bytes: int | None = None, **settings: object) -> DaemonProcess:
            fields = {"broker": broker.url, "task_id": task_id, "mac": mac, "app": "fl_apps:endless"}
            fields |= {"check_app": False, "state_dir": tmp_path, "partition_id": 3, "num_partitions": 5} | settings
            env = {f"FEDOPS_MQTT_{name.upper()}": str(value) for name, value in fields.items()}
            command = [sys.executable, str(HERE / "daemon_main.py")]
            process = await asyncio.create_subprocess_exec(
                *(command if max_file_bytes is None else with_file_limit(command, max_file_bytes)),
                cwd=HERE,
                env=os.environ | env,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            stack.push_async_callback(_kill, process)
            return DaemonProcess(process)

        yield spawn  # type: ignore[misc]


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.communicate()


def training_processes(daemon: DaemonProcess) -> list[psutil.Process]:
    """Return this daemon's training processes; other tests have daemons of their own at the same time."""
    children = psutil.Process(daemon.process.pid).children()
    return [child for child in children if "fedops_mqtt.training.process" in child.cmdline()]


def until_gone(process: psutil.Process) -> None:
    """Wait until a process is dead, whether or not somebody has asked for its status yet."""
    until = time.monotonic() + PATIENCE_S
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until, f"{process} lives on"
            time.sleep(0.02)


async def until_training(operator: Operator, serve_fl: ServeFl, *, run_id: str = "r1", **changes: object) -> None:
    server_ip = await serve_fl("line", run_id, SECRET.hex(), "1")
    await operator.trigger(server_ip, run_id=run_id, **changes)
    await operator.until(lambda status: status.run is not None and status.run.phase is Phase.TRAINING)


async def test_an_idle_daemon_with_its_shim_is_small_and_imports_no_framework(
    spawn_daemon: SpawnDaemon, operator: Operator
) -> None:
    daemon = await spawn_daemon(http="127.0.0.1:0")
    await operator.until_condition(ClientCondition.ONLINE)
    daemon.process.send_signal(signal.SIGUSR1)
    assert daemon.process.stdout is not None
    told = json.loads(await daemon.process.stdout.readline())
    print(f"idle daemon with HTTP shim: {told['rss_mb']:.1f} MB resident (limit {MAX_IDLE_MB} MB)")
    assert told["heavy"] == []
    assert told["rss_mb"] <= MAX_IDLE_MB


async def test_a_daemon_that_is_killed_is_out_by_its_will_and_its_training_dies_with_it(
    spawn_daemon: SpawnDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    daemon = await spawn_daemon()
    await operator.until_condition(ClientCondition.ONLINE)
    await until_training(operator, serve_fl)
    (training,) = training_processes(daemon)
    await daemon.end(signal.SIGKILL)
    out = await operator.until_condition(ClientCondition.CLIENT_OUT, reason="lost")
    assert (out.run, out.last_run, out.heartbeat_s) == (None, None, 60)
    await asyncio.to_thread(until_gone, training)

    await spawn_daemon()
    back = await operator.until_condition(ClientCondition.ONLINE)
    assert back.last_run is not None
    assert (back.last_run.run_id, back.last_run.reason_code) == ("r1", ReasonCode.INTERRUPTED)
    assert back.instance != out.instance
    await until_training(operator, serve_fl, attempt=2, instance=back.instance)


async def test_a_daemon_that_is_started_again_on_a_full_disk_is_on_the_bus(
    spawn_daemon: SpawnDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    """The limit on a file's size fails every write, as a full disk does, and needs no disk."""
    first = await spawn_daemon()
    await operator.until_condition(ClientCondition.ONLINE)
    await until_training(operator, serve_fl)
    first.process.kill()
    await operator.until_condition(ClientCondition.CLIENT_OUT)
    second = await spawn_daemon(max_file_bytes=0)
    online = await operator.until_condition(ClientCondition.ONLINE)
    assert online.last_run is not None
    assert online.last_run.reason_code is ReasonCode.INTERRUPTED
    await operator.trigger("127.0.0.1:1", run_id="r2")
    refused = await operator.until(
        lambda status: status.last_trigger is not None and status.last_trigger.run_id == "r2"
    )
    assert refused.last_trigger is not None
    assert "journal cannot be written" in (refused.last_trigger.reason or "")
    await second.end(signal.SIGTERM)


async def test_sigterm_interrupts_the_training_and_publishes_client_out(
    spawn_daemon: SpawnDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    daemon = await spawn_daemon()
    await operator.until_condition(ClientCondition.ONLINE)
    await until_training(operator, serve_fl)
    assert await daemon.end(signal.SIGTERM) == ExitCode.OK
    out = await operator.until_condition(ClientCondition.CLIENT_OUT, reason="shutdown")
    assert out.last_run is not None
    assert (out.last_run.outcome, out.last_run.reason_code) == (Outcome.FAILED, ReasonCode.INTERRUPTED)


async def test_a_restarted_daemon_repeats_its_answer_and_starts_nothing(
    spawn_daemon: SpawnDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    daemon = await spawn_daemon(app="fl_apps:counting")
    await operator.until_condition(ClientCondition.ONLINE)
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "1")
    await operator.trigger(server_ip)
    await operator.until_condition(ClientCondition.TRAIN_FAILED)  # this process has no batch_size in its run_config
    await daemon.end(signal.SIGKILL)
    await spawn_daemon(app="fl_apps:counting")
    back = await operator.until_condition(ClientCondition.ONLINE)
    assert back.last_run is not None
    assert back.last_run.outcome is Outcome.FAILED
    await operator.trigger(server_ip)
    again = await operator.until(lambda status: status.seq > back.seq)
    assert (again.last_trigger, again.run, again.last_run) == (back.last_trigger, None, back.last_run)


async def test_the_older_of_two_daemons_with_one_identity_yields_with_its_own_exit_code(
    spawn_daemon: SpawnDaemon, operator: Operator, tmp_path: Path
) -> None:
    older = await spawn_daemon(state_dir=tmp_path / "a")
    await operator.until_condition(ClientCondition.ONLINE)
    newer = await spawn_daemon(state_dir=tmp_path / "b", backoff_initial_s=0.05, backoff_max_s=0.1)
    async with asyncio.timeout(PATIENCE_S):
        assert await older.process.wait() == ExitCode.CONFLICT
    assert newer.process.returncode is None


async def test_an_unreachable_broker_is_logged_once_and_waited_for(
    spawn_daemon: SpawnDaemon, operator: Operator, broker: Mosquitto
) -> None:
    await broker.kill()
    daemon = await spawn_daemon(backoff_initial_s=0.05, backoff_max_s=0.1)
    await daemon.until_log("cannot use the broker")
    await broker.restart()
    await operator.until_condition(ClientCondition.ONLINE)
    await daemon.until_log("connected to the broker")
    said = [line for line in daemon.log if "cannot use the broker" in line]
    assert len(said) == 1, said
    assert await daemon.end(signal.SIGTERM) == ExitCode.OK


async def test_a_wrong_password_is_logged_once_with_what_to_check_and_never_shown(
    spawn_daemon: SpawnDaemon, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    tool = await asyncio.create_subprocess_exec("mosquitto_passwd", "-b", "-c", str(passwords), "pi", "right")
    assert await tool.wait() == 0
    async with Mosquitto(changes={"allow_anonymous": "false", "password_file": str(passwords)}) as guarded:
        daemon = await spawn_daemon(broker=guarded.url, broker_user="pi", broker_password="hunter2", backoff_max_s=0.1)
        line = await daemon.until_log("cannot use the broker")
        assert "user 'pi' is refused" in line
        assert "check user name and password" in line
        assert await daemon.end(signal.SIGTERM) == ExitCode.OK
    assert "hunter2" not in "".join(daemon.log)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"task_id": "a/b"}, "task_id"),
        pytest.param({"task_id": "a+b"}, "task_id", marks=pytest.mark.long),
        pytest.param({"task_id": ".."}, "task_id", marks=pytest.mark.long),
        pytest.param({"mac": "me"}, "client_mac", marks=pytest.mark.long),
        pytest.param({"app": "no_colon"}, "MODULE:ATTRIBUTE", marks=pytest.mark.long),
        pytest.param({"broker": "http://127.0.0.1:1"}, "mqtt://", marks=pytest.mark.long),
        ({"state_dir": "/proc/none"}, "state folder"),
    ],
)
async def test_a_setting_that_is_wrong_ends_the_daemon_and_is_named(
    spawn_daemon: SpawnDaemon, settings: dict[str, object], says: str
) -> None:
    daemon = await spawn_daemon(**settings)
    async with asyncio.timeout(PATIENCE_S):
        _, log = await daemon.process.communicate()
    assert daemon.process.returncode in (1, ExitCode.CONFIG)  # 1: the settings themselves refuse it
    assert says in log.decode()


async def test_an_app_that_cannot_be_imported_ends_the_daemon_at_once_and_its_status_has_the_reason(
    spawn_daemon: SpawnDaemon, operator: Operator
) -> None:
    daemon = await spawn_daemon(app="there_is_no_such_module:app", check_app=True)
    out = await operator.until_condition(ClientCondition.CLIENT_OUT)
    assert "there_is_no_such_module" in str(out.reason)
    async with asyncio.timeout(PATIENCE_S):
        _, log = await daemon.process.communicate()
    assert daemon.process.returncode == ExitCode.CONFIG
    assert "no module named 'there_is_no_such_module'" in log.decode()
    assert "Traceback" not in log.decode()


async def test_an_address_of_the_shim_that_is_taken_ends_the_daemon_and_is_named(spawn_daemon: SpawnDaemon) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        daemon = await spawn_daemon(http=address)
        async with asyncio.timeout(PATIENCE_S):
            _, log = await daemon.process.communicate()
    assert daemon.process.returncode == ExitCode.UNAVAILABLE
    assert f"cannot listen on {address}" in log.decode()
    assert "Traceback" not in log.decode()
