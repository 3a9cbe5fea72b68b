"""What a machine may lack: a home folder, a name in UTF-8, characters of a terminal, room for the output, an init."""

import asyncio
import io
import os
import pwd
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from fedops_mqtt import cli
from fedops_mqtt.cli.entry import run
from fedops_mqtt.protocol.identity import Text
from fedops_mqtt.runtime.machine import host_id, host_name
from fedops_mqtt.runtime.settings import ClientSettings, ManagerSettings
from fedops_mqtt.runtime.systemd import ExitCode, end_signals, on_end_signal

_ORPHANING = """
import ctypes, os, signal, sys, time
from fedops_mqtt.cli.init import stand_in_for_init

ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: like process 1, it inherits orphans
stand_in_for_init()
parent = os.getppid()
if os.fork() == 0:
    if os.fork():
        os._exit(0)
    while os.getppid() != parent:
        time.sleep(0.01)
    os._exit(0)
os.wait()
children = f"/proc/{parent}/task/{parent}/children"
while open(children).read().split() != [str(os.getpid())]:
    time.sleep(0.01)
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user id that /etc/passwd does not know."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("verb", ["client", "manager", "doctor", "simulate"])
def test_help_needs_no_home_folder(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == ExitCode.OK
    assert "Usage" in capsys.readouterr().out


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_folder_gets_the_name_of_the_setting_to_give(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["client", "--task-id", "t", "--app", "a:b"]) == ExitCode.CONFIG
    assert "--state-dir" in capsys.readouterr().err
    assert run(["client", "--task-id", "t", "--app", "a:b", "--state-dir", "~/x"]) == ExitCode.USAGE
    assert "~/x" in capsys.readouterr().err
    assert ManagerSettings(state_dir=tmp_path, store="s3://bucket/models").state_dir == tmp_path


def test_a_tilde_is_the_home_folder_wherever_a_path_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "settings.toml").write_text('state_dir = "~/state"\nbroker_ca_file = "ca.crt"\n')
    monkeypatch.setenv("FEDOPS_MQTT_CONFIG", str(tmp_path / "settings.toml"))
    monkeypatch.setenv("FEDOPS_MQTT_LINE_CA_FILE", "~/line.crt")
    settings = ClientSettings(broker_cert_file=Path("~/own.crt"))
    assert settings.state_dir == tmp_path / "home" / "state"
    assert settings.broker_ca_file == tmp_path / "ca.crt"
    assert settings.line_ca_file == tmp_path / "home" / "line.crt"
    assert settings.broker_cert_file == tmp_path / "home" / "own.crt"


@pytest.mark.parametrize("name", ["K\udcfcche", "x" * 5000, "\ud800", ""])
def test_whatever_a_machine_is_called_its_status_can_be_sent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    TypeAdapter(Text).validate_python(host_name(), strict=True)
    assert host_name().encode().decode() == host_name()


def test_required_is_shown_without_a_backslash(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--help"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "[required]" in said
    assert "\\[" not in said


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["client", "--help"]])
def test_an_output_without_room_is_a_sentence(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(arguments) == ExitCode.FAILED
    assert "cannot write the output: No space left on device" in capsys.readouterr().err


def test_a_message_without_room_keeps_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    with io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run(["nonsense"]) == ExitCode.USAGE
        assert run(["watch", "--broker", "http://x"]) == ExitCode.CONFIG


def test_a_terminal_without_a_character_shows_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(seen, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["fedops-mqtt", "K\N{LATIN SMALL LETTER U WITH DIAERESIS}che"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ExitCode.USAGE
    print("K\N{LATIN SMALL LETTER U WITH DIAERESIS}che", flush=True)
    assert seen.getvalue() == b"K\\xfcche\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_closed_terminal_ends_a_process_as_other_signals_do(number: signal.Signals) -> None:
    told: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    try:
        with on_end_signal(told.set_result):
            os.kill(os.getpid(), number)
            assert await told is number
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in end_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_process_1_collects_orphans_passes_signals_on_and_ends_as_its_verb() -> None:
    program = [sys.executable, "-c", _ORPHANING]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait() == 7


def test_two_machines_of_one_name_are_two_hosts_and_an_empty_id_is_none(tmp_path: Path) -> None:
    one, other, empty = tmp_path / "one", tmp_path / "other", tmp_path / "empty"
    one.write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    other.write_text("0123456789abcdef0123456789abcdef\n")
    empty.touch()
    assert host_id(one) == host_id(one) != host_id(other)
    assert host_id(one).startswith(f"{host_name()} (")
    assert "3d1219c7" not in host_id(one)
    assert host_id(empty) == host_id(tmp_path / "none") == host_name()
