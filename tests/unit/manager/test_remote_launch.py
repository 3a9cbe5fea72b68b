"""The far side of a launch: the program that starts a server, copies its log, signals it and says whether it lives."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from file_limit import with_file_limit

from fedops_mqtt.runtime.remote_launch import END_MARK, EXIT_NOT_STARTED

WAIT = 300.0


class Far:
    """A machine with a state folder, reached by running the program on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def command(self, *verb: str) -> list[str]:
        return [sys.executable, "-m", "fedops_mqtt.runtime.remote_launch", f"--state-dir={self.folder}", *verb]

    def start(self, program: str, *, launch: int = 1, **changes: Any) -> "subprocess.Popen[bytes]":
        order = {
            "run_id": "r1", "launch": launch, "command": ["sh", "-c", program], "module": None, "args": [], "cwd": None,
            "environment": {}, "files": {}, **changes,
        }  # fmt: skip
        process = subprocess.Popen(
            self.command("start"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode())
        process.stdin.close()
        process.stdin = None
        self.started.append(process)
        return process

    def run(self, *verb: str, given: bytes = b"", is_disk_full: bool = False) -> "subprocess.CompletedProcess[bytes]":
        command = self.command(*verb)
        command = with_file_limit(command, 0) if is_disk_full else command
        return subprocess.run(command, input=given, capture_output=True, timeout=WAIT, check=False)

    def is_alive(self, launch: int = 1) -> bool:
        done = self.run("alive", "r1", str(launch))
        assert done.returncode == 0, done.stderr
        return bool(done.stdout.strip())

    def pid(self, launch: int = 1) -> int:
        path = self.folder / "launches" / f"r1.{launch}" / "process.json"
        until = time.monotonic() + WAIT
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.02)
        return int(json.loads(path.read_text())["pid"])


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    machine = Far(tmp_path)
    yield machine
    for path in tmp_path.glob("launches/*/process.json"):
        pid = int(json.loads(path.read_text())["pid"])
        with suppress(psutil.NoSuchProcess):
            if any(str(tmp_path) in value for value in psutil.Process(pid).environ().values()):
                os.killpg(pid, signal.SIGKILL)
    for process in machine.started:
        process.kill()
        process.communicate()


def ending(output: bytes) -> dict[str, Any]:
    _, mark, facts = output.decode().rpartition(END_MARK)
    assert mark, output
    read: dict[str, Any] = json.loads(facts)
    return read


def test_a_server_gets_its_settings_files_and_the_last_line_reports_how_it_ended(far: Far) -> None:
    program = 'cat "$FEDOPS_MQTT_RUN_SECRET_FILE"; stat -c %a "$FEDOPS_MQTT_RUN_SECRET_FILE"; echo "$X"; exit 3'
    files = {"run_secret_file": base64.b64encode(b"5ec2e7\n").decode()}
    process = far.start(program, environment={"X": "told"}, files=files)
    output, _ = process.communicate(timeout=WAIT)
    assert output.decode().splitlines()[:3] == ["5ec2e7", "600", "told"]
    assert (ending(output), process.returncode) == ({"status": 3, "final_status": None}, 3)
    assert not list(far.folder.glob("launches/*/files")), "no secret stays"


def test_the_final_status_that_a_server_kept_is_in_the_last_line(far: Far) -> None:
    output, _ = far.start('printf said > "$FEDOPS_MQTT_FINAL_STATUS_FILE"').communicate(timeout=WAIT)
    assert ending(output) == {"status": 0, "final_status": "said"}


def test_the_last_line_is_a_line_of_its_own_and_has_the_nonce_of_its_launch_in_every_copy(far: Far) -> None:
    output, _ = far.start("printf 'no newline'", nonce="n0nce").communicate(timeout=WAIT)
    for copied in (output, far.run("attach", "r1", "1", "0").stdout):
        first, last = copied.decode().splitlines()
        assert (first, last.startswith(END_MARK)) == ("no newline", True)
        assert ending(copied) == {"status": 0, "final_status": None, "nonce": "n0nce"}


def test_a_server_outlives_the_reader_of_its_log_and_is_read_again_from_any_byte(far: Far, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    process = far.start(f"echo first; until test -e {gate}; do echo more; sleep 0.1; done; echo last")
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    log, until = tmp_path / "launches/r1.1/server.log", time.monotonic() + WAIT
    while log.read_bytes().count(b"more\n") < 3:  # lines that nobody reads
        assert time.monotonic() < until, log.read_bytes()
        time.sleep(0.02)
    assert far.is_alive()
    gate.touch()
    output = far.run("attach", "r1", "1", "6").stdout
    assert output.startswith(b"more\n")
    assert output.count(b"last\n") == 1
    assert ending(output)["status"] == 0
    assert not far.is_alive()


def test_the_end_of_the_process_that_started_it_ends_no_server(far: Far) -> None:
    process = far.start("sleep 600")
    far.pid()
    process.kill()
    process.wait(WAIT)
    assert far.is_alive()
    far.run("stop", "r1", "1", "KILL")
    assert ending(far.run("attach", "r1", "1", "0").stdout) == {"status": None, "final_status": None}


def test_a_stop_brings_its_reason(far: Far) -> None:
    program = "trap 'cat \"$FEDOPS_MQTT_STOP_REASON_FILE\"; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    process = far.start(program)
    assert process.stdout is not None
    process.stdout.readline()
    assert far.run("stop", "r1", "1", "TERM", given=b"stopped\nfor lunch").returncode == 0
    output, _ = process.communicate(timeout=WAIT)
    assert b"stopped\nfor lunch" in output


def test_a_full_disk_hides_no_server_and_keeps_none_from_its_end(far: Far) -> None:
    process = far.start("echo ready; sleep 600")
    assert process.stdout is not None
    process.stdout.readline()
    path = far.folder / "launches" / "r1.1"
    (path / "exit" / "in-the-way").mkdir(parents=True)  # its status cannot be written either
    asked = far.run("alive", "r1", "1", is_disk_full=True)
    assert (asked.returncode, bool(asked.stdout.strip())) == (0, True), asked.stderr
    stopped = far.run("stop", "r1", "1", "TERM", given=b"stopped\nfor lunch", is_disk_full=True)
    assert stopped.returncode == 0, stopped.stderr
    output, _ = process.communicate(timeout=WAIT)
    assert ending(output)["status"] == -signal.SIGTERM
    assert not (path / "files").exists(), "no secret stays"


def test_a_claim_that_a_power_cut_has_emptied_has_no_owner(far: Far) -> None:
    path = far.folder / "launches" / "r1.1"
    path.mkdir(parents=True)
    (path / "claim.json").touch()
    assert not far.is_alive()
    assert far.run("stop", "r1", "1", "TERM").returncode == 0


def as_written_by_the_version_before(far: Far, name: str, *, older_s: float = 0.0) -> None:
    path = far.folder / "launches" / "r1.1" / name
    pid = json.loads(path.read_text())["pid"]
    started_at = psutil.Process(pid).create_time() - older_s
    path.write_text(json.dumps({"pid": pid, "started_at": started_at}))


def test_a_server_that_the_version_before_started_is_alive_is_read_and_ends_at_a_stop(far: Far) -> None:
    process = far.start("echo ready; sleep 600")
    assert process.stdout is not None
    process.stdout.readline()
    for name in ("claim.json", "process.json"):
        as_written_by_the_version_before(far, name)
    assert far.is_alive()
    attached = subprocess.Popen(far.command("attach", "r1", "1", "0"), stdout=subprocess.PIPE)
    far.started.append(attached)
    assert far.run("stop", "r1", "1", "TERM").returncode == 0
    output, _ = attached.communicate(timeout=WAIT)
    assert ending(output)["status"] == -signal.SIGTERM
    assert not far.is_alive()


def test_a_process_that_has_the_id_of_a_server_of_the_version_before_is_not_taken_for_it(far: Far) -> None:
    far.start("sleep 600")
    pid = far.pid()
    as_written_by_the_version_before(far, "process.json", older_s=3600.0)
    assert not far.is_alive()
    assert far.run("stop", "r1", "1", "KILL").returncode == 0
    assert psutil.pid_exists(pid)


def test_a_signal_to_the_starter_reaches_the_server_as_in_a_container(far: Far) -> None:
    process = far.start("trap 'echo ended; exit 0' TERM; echo ready; while :; do sleep 0.1; done")
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    output, _ = process.communicate(timeout=WAIT)
    assert b"ended\n" in output


def test_a_launch_that_was_found_not_to_live_never_starts_later(far: Far) -> None:
    assert not far.is_alive()
    _, complaint = far.start("echo no").communicate(timeout=WAIT)
    assert b"was ended before it came" in complaint


def test_an_earlier_launch_that_still_lives_is_ended_before_the_next_begins(far: Far) -> None:
    first = far.start("sleep 600")
    pid = far.pid()
    second = far.start(f"grep -Eq '^State:.[^ZX]' /proc/{pid}/status && echo both", launch=2)  # a zombie has ended
    output, _ = second.communicate(timeout=WAIT)
    assert b"both" not in output.replace(END_MARK.encode(), b"")
    assert ending(first.communicate(timeout=WAIT)[0])["status"] == -signal.SIGTERM


def test_a_program_that_is_not_there_is_named(far: Far) -> None:
    process = far.start("", command=["/no/such/program"])
    _, complaint = process.communicate(timeout=WAIT)
    assert b"/no/such/program" in complaint
    assert process.returncode == EXIT_NOT_STARTED
    assert not far.is_alive()


def test_a_verb_that_is_none_is_answered_with_how_to_ask(far: Far) -> None:
    assert b"usage" in far.run("dance").stderr
