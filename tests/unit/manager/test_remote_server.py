"""A server on another machine, as its manager asks for it: through commands that leave something behind."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fedops_mqtt.manager import remote_launcher
from fedops_mqtt.manager.launcher import Liveness, ServerProcess
from fedops_mqtt.manager.remote_launcher import RemoteLaunch, RemoteServer, read_end
from fedops_mqtt.manager.tasks import TaskConfig
from fedops_mqtt.runtime.remote_launch import END_MARK

WAIT = 60.0


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Path]:
    """Where a command writes the id of the process that it leaves in a session of its own, with its pipes."""
    path = tmp_path / "left"
    yield path
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(path.read_text()), signal.SIGKILL)


def server(tmp_path: Path, alive: str, problems: list[str | None]) -> RemoteServer:
    task = TaskConfig.model_validate(
        {"launch": ["sh", "-c", "{shell_command}"], "launch_alive": ["sh", "-c", alive], "launch_stop": ["true"]}
    )
    launch = launch_of(tmp_path, task)

    async def note(process: ServerProcess) -> None:
        raise AssertionError("nothing is started")

    return RemoteServer(launch, problems.append, note)


def launch_of(tmp_path: Path, task: TaskConfig) -> RemoteLaunch:
    return RemoteLaunch(
        run_id="r1", launch=1, task_id="t", task=task, log_path=tmp_path / "log", final_status_file=tmp_path / "final",
        order_file=tmp_path / "order", start_limit_s=60.0, environment=dict(os.environ), nonce="n0nce",
    )  # fmt: skip


async def test_a_command_that_does_not_answer_is_given_up_though_what_it_started_holds_its_pipes(
    tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_launcher, "ASK_TIMEOUT_S", 1.0)
    problems: list[str | None] = []
    alive = f"setsid sleep 600 & echo $! > {left}; sleep 600 & echo $! > {tmp_path}/child; wait"
    async with asyncio.timeout(WAIT):
        assert await server(tmp_path, alive, problems).check() is Liveness.UNKNOWN
    assert problems == ["the FL server's host does not answer: sh did not answer within 1 s"]
    async with asyncio.timeout(WAIT):  # its group is killed with it, as soon as the kernel comes to it
        while _runs(int((tmp_path / "child").read_text())):  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.02)


async def test_an_answer_is_taken_though_what_the_command_started_holds_its_pipes(tmp_path: Path, left: Path) -> None:
    problems: list[str | None] = []
    alive = f"setsid sleep 600 & echo $! > {left}; echo process 7"  # as an ssh master that persists
    async with asyncio.timeout(WAIT):
        assert await server(tmp_path, alive, problems).check() is Liveness.ALIVE
    assert [each for each in problems if each] == []


async def test_the_last_line_of_errors_is_the_problem_however_much_was_written(tmp_path: Path) -> None:
    problems: list[str | None] = []
    alive = "head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2; echo the last line >&2; exit 3"
    assert await server(tmp_path, alive, problems).check() is Liveness.UNKNOWN
    assert problems
    assert str(problems[0]).endswith("the last line")
    assert len(str(problems[0])) < 1000


LAST = {"status": 0, "final_status": "said", "nonce": "n0nce"}


def line(**changes: object) -> bytes:
    return f"{END_MARK}{json.dumps({**LAST, **changes})}\n".encode()


def end_in(tmp_path: Path, log: bytes) -> str | None:
    (tmp_path / "log").write_bytes(log)
    return read_end(launch_of(tmp_path, TaskConfig(module="m")))


def test_the_last_line_with_the_launchs_nonce_is_its_end(tmp_path: Path) -> None:
    assert end_in(tmp_path, b"round 1\n" + line()) == "FL server process exited with status 0"
    assert (tmp_path / "final").read_text() == "said"


@pytest.mark.parametrize(
    "log",
    [
        line(nonce="guessed"),
        f'{END_MARK}{{"status": 0, "final_status": "said"}}\n'.encode(),
        b"client a: " + line(),
        line() + b"round 2\n",
        END_MARK.encode() + b"[" * 50_000 + b"\n",
        END_MARK.encode() + b'"\xff\n',
        END_MARK.encode() + b"[]\n",
        b"",
    ],
    ids=["guessed", "none", "in a line", "not the last", "deep", "not UTF-8", "no object", "empty"],
)
def test_what_a_client_makes_a_server_print_is_not_the_servers_end(tmp_path: Path, log: bytes) -> None:
    assert end_in(tmp_path, log) is None
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("final", ["said", "\ud800"], ids=["disk", "surrogate"])
def test_a_final_status_that_cannot_be_kept_does_not_hide_the_end(tmp_path: Path, final: str) -> None:
    if final == "said":
        (tmp_path / "final").mkdir()  # it cannot be replaced by a file
    assert end_in(tmp_path, line(final_status=final)) == "FL server process exited with status 0"


def _runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
