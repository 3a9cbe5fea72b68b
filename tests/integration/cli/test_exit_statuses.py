"""Exit statuses: docs/operations.md names every verb of the command table, and each status of it is brought about."""

import asyncio
import errno
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from bundles import flower_bundle
from click import Group
from http_stand_in import Handler, serving

import fedops_mqtt
from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.cli.entry import make_app, run
from fedops_mqtt.runtime.systemd import ExitCode, exit_code_of_disk

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
NOBODY = "127.0.0.1:1"
SHOWN_ELSEWHERE = {
    ("client", ExitCode.UNAVAILABLE): "tests/integration/client/test_daemon_process.py",
    ("client", ExitCode.CONFIG): "tests/integration/client/test_daemon_process.py",
    ("client", ExitCode.CONFLICT): "tests/integration/client/test_daemon_process.py",
    ("manager", ExitCode.FAILED): "tests/acceptance/test_standby.py",
    ("manager", ExitCode.CONFLICT): "tests/integration/manager/test_manager_restart.py",
}
"""Processes of their own; each file names the status."""
ASKING = {
    "clients": ["clients"],
    "runs": ["runs"],
    "start": ["start", "digits"],
    "stop": ["stop", "run-1"],
    "logs": ["logs", "run-1"],
    "metrics": ["metrics", "run-1"],
    "run show": ["run", "show", "run-1"],
    "app list": ["app", "list", "digits"],
    "app show": ["app", "show", "0" * 64],
    "app rollback": ["app", "rollback", "digits"],
    "app withdraw": ["app", "withdraw", "digits"],
}
PUBLISHING = {"app publish": ["--task", "digits"], "run project": []}
FLEET = {
    "fleet enrol": ["02:00:00:00:00:01"],
    "fleet renew": ["broker"],
    "fleet revoke": ["broker"],
    "fleet list": [],
    "fleet dynsec": [],
    "fleet nats": [],
}


def verbs(group: Group, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, Group):
            yield from verbs(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def documented() -> set[tuple[str, ExitCode]]:
    rows = re.findall(r"^\| `([a-z ]+)` \| ([\d, ]+) \|", PAGE, re.MULTILINE)
    return {(verb, ExitCode(int(status))) for verb, statuses in rows for status in statuses.split(", ")}


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A manager that gives everybody one answer."""

    class Refusing(Handler):
        def do_GET(self) -> None:
            body = json.dumps({"title": "no", "detail": "there is no such run; see GET /api/v1/runs"}).encode()
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.give(status, body)

        do_POST = do_PUT = do_DELETE = do_GET

    with serving(Refusing) as address:
        yield f"http://{address}"


def ended(arguments: list[str]) -> int:
    """Run a verb in this process; those that stay end by SystemExit."""
    try:
        return run(arguments)
    except SystemExit as ending:
        return int(ending.code or 0)


def seen(arguments: list[str], code: ExitCode, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(arguments) == code
    said = capsys.readouterr()
    assert advice in said.err + said.out
    assert "Traceback" not in said.err


def test_every_verb_of_the_command_table_has_its_exit_statuses_documented() -> None:
    command = typer.main.get_command(make_app())
    assert isinstance(command, Group)
    assert {verb for verb, _ in documented()} == set(verbs(command))


def test_every_documented_exit_status_is_produced_by_a_test() -> None:
    asking = {ExitCode.FAILED, ExitCode.UNAVAILABLE, ExitCode.NO_PERMISSION, ExitCode.CONFIG}
    here = {(verb, code) for verb in [*ASKING, *PUBLISHING] for code in asking}
    here |= {(verb, ExitCode.CONFIG) for verb in [*FLEET, "fleet init", "bridge", "manager", "watch"]}
    here |= {("watch", ExitCode.UNAVAILABLE), ("watch", ExitCode.NO_PERMISSION), ("doctor", ExitCode.FAILED)}
    here |= {("broker", ExitCode.UNAVAILABLE), ("manager", ExitCode.UNAVAILABLE), ("simulate", ExitCode.FAILED)}
    here |= {("app approve", ExitCode.CONFIG), ("demo", ExitCode.FAILED), ("bridge", ExitCode.UNAVAILABLE)}
    here |= {(f"model {verb}", ExitCode.FAILED) for verb in MODEL}
    assert documented() == here | set(SHOWN_ELSEWHERE)
    root = Path(__file__).parents[3]
    for (_, code), path in SHOWN_ELSEWHERE.items():
        assert f"ExitCode.{code.name}" in (root / path).read_text(encoding="utf-8"), (path, code)


@pytest.mark.parametrize("verb", ASKING)
def test_a_verb_that_asks_a_manager(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    asking = ASKING[verb]
    seen([*asking, "--manager", f"http://{NOBODY}"], ExitCode.UNAVAILABLE, "`fedops-mqtt manager` starts one", capsys)
    seen([*asking, "--manager", "nonsense"], ExitCode.CONFIG, "--manager wants", capsys)
    with answering(401) as url:
        seen([*asking, "--manager", url], ExitCode.NO_PERMISSION, "set FEDOPS_MQTT_MANAGER_TOKEN", capsys)
    with answering(404) as url:
        seen([*asking, "--manager", url], ExitCode.FAILED, "see GET /api/v1/runs", capsys)


@pytest.mark.parametrize("verb", PUBLISHING)
def test_a_verb_that_publishes_an_app(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = tmp_path / "app.fab"
    bundle.write_bytes(flower_bundle(tmp_path / "project"))
    publishing = [*verb.split(), str(bundle), *PUBLISHING[verb], "--manager"]
    seen([*publishing, f"http://{NOBODY}"], ExitCode.UNAVAILABLE, "`fedops-mqtt manager` starts one", capsys)
    seen([*publishing, "https://manager.example"], ExitCode.CONFIG, "must be signed", capsys)
    with answering(401) as url:
        seen([*publishing, url], ExitCode.NO_PERMISSION, "set FEDOPS_MQTT_MANAGER_TOKEN", capsys)
    with answering(404) as url:
        seen([*publishing, url], ExitCode.FAILED, "see GET /api/v1/runs", capsys)


@pytest.mark.parametrize("verb", FLEET)
def test_a_verb_that_looks_after_a_fleet(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*verb.split(), *FLEET[verb], "--fleet-dir", str(tmp_path / "none")]
    seen(arguments, ExitCode.CONFIG, "make one with `fedops-mqtt fleet init", capsys)


def test_a_fleet_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fleet", "init", "--host", "localhost", "--fleet-dir", str(tmp_path / "fleet")]
    assert ended(arguments) == ExitCode.OK
    seen(arguments, ExitCode.CONFIG, "choose another folder", capsys)


def test_names_come_from_a_text_in_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet, names = ["--fleet-dir", str(tmp_path / "fleet")], tmp_path / "macs.txt"
    assert ended(["fleet", "init", "--host", "localhost", *fleet]) == ExitCode.OK
    names.write_bytes("02:00:00:00:00:01\n# Gerät\n".encode("latin-1"))
    for wrong, problem in ((names, "not a text in UTF-8"), (tmp_path, "Is a directory")):
        seen(["fleet", "enrol", "--from", str(wrong), *fleet], ExitCode.USAGE, f"{wrong} cannot be read: ", capsys)
        seen(["fleet", "enrol", "--from", str(wrong), *fleet], ExitCode.USAGE, problem, capsys)
    names.write_text("02:00:00:00:00:01\n", encoding="utf-8-sig")
    assert ended(["fleet", "enrol", "--from", str(names), *fleet]) == ExitCode.OK


def test_watch_and_doctor_without_a_broker(capsys: pytest.CaptureFixture[str]) -> None:
    seen(["watch", "--broker", f"mqtt://{NOBODY}"], ExitCode.UNAVAILABLE, "`fedops-mqtt broker` starts one", capsys)
    seen(["watch", "--broker", "http://x"], ExitCode.CONFIG, "Correct --broker", capsys)
    seen(["doctor", "--broker", f"mqtt://{NOBODY}"], ExitCode.FAILED, "problem", capsys)


async def test_watch_that_is_refused(mosquitto_with_password: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["watch", "--once", "--broker", mosquitto_with_password]
    assert await asyncio.to_thread(ended, arguments) == ExitCode.NO_PERMISSION
    assert "FEDOPS_MQTT_BROKER_PASSWORD" in capsys.readouterr().err


@pytest.fixture
async def mosquitto_with_password() -> AsyncIterator[str]:
    async with Mosquitto(changes={"allow_anonymous": "false"}) as broker:
        yield broker.url


def test_a_broker_whose_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        seen(["broker", "--port", str(port)], ExitCode.UNAVAILABLE, f"cannot listen on 127.0.0.1:{port}", capsys)


def test_a_broker_that_cannot_begin(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broker, wrong = ["broker", "--port", "0"], tmp_path / "wrong.conf"
    wrong.write_bytes(b"\xff\n")
    seen([*broker, "--config", str(wrong)], ExitCode.UNAVAILABLE, "not a text in UTF-8", capfd)
    wrong.write_text("nonsense yes\n")
    seen([*broker, "--config", "/no/such.conf"], ExitCode.UNAVAILABLE, "name another with --config", capfd)
    seen([*broker, "--config", str(tmp_path)], ExitCode.UNAVAILABLE, "Is a directory; name another", capfd)
    seen([*broker, "--data-dir", str(no_folder(tmp_path))], ExitCode.UNAVAILABLE, "be written with --data-dir", capfd)
    seen([*broker, "--config", str(wrong)], ExitCode.UNAVAILABLE, "its own lines above have the cause", capfd)


def test_a_manager_that_cannot_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manager = ["manager", "--state-dir", str(tmp_path)]
    anywhere = [*manager, "--http", "127.0.0.1:0"]
    seen([*anywhere, "--broker", "http://x"], ExitCode.CONFIG, "expected mqtt://", capsys)
    seen([*anywhere, "--tasks", "/no/such/file"], ExitCode.CONFIG, "name another with --tasks", capsys)
    seen([*manager, "--http", "0.0.0.0:0"], ExitCode.CONFIG, "set FEDOPS_MQTT_MANAGER_TOKEN", capsys)
    seen(
        ["manager", "--state-dir", str(no_folder(tmp_path))], ExitCode.CONFIG, "choose one that can be written", capsys
    )
    no_text = tmp_path / "no-text"
    no_text.write_bytes(b"\xff\n")
    for file, problem in ((no_text, "PEM"), (tmp_path, "Is a directory")):
        secure = [*anywhere, "--http-cert-file", str(file), "--http-key-file", str(file)]
        seen(secure, ExitCode.CONFIG, f"no HTTPS with {file}, {file}: ", capsys)
        seen(secure, ExitCode.CONFIG, problem, capsys)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        seen([*manager, "--http", address], ExitCode.UNAVAILABLE, "free it, or choose another", capsys)


def test_a_simulation_whose_configuration_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(b"\xff\n")
    program = [str(Path(fedops_mqtt.__file__).parent / "demo" / "server.py")]
    arguments = ["simulate", "--server", *program, "--app", "fedops_mqtt.demo:client_app", "--folder", str(tmp_path)]
    for file in (config, tmp_path):
        seen([*arguments, "--task-config", str(file)], ExitCode.CONFIG, f"configuration {file} ", capsys)


def test_a_bridge_that_cannot_begin(capsys: pytest.CaptureFixture[str]) -> None:
    seen(["bridge", "--broker", "http://x"], ExitCode.CONFIG, "expected mqtt://", capsys)
    seen(["bridge", "--clients", "x"], ExitCode.CONFIG, "such as http://", capsys)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        seen(["bridge", "--http", address], ExitCode.UNAVAILABLE, address, capsys)


def test_a_port_that_is_none_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("manager", "bridge"):
        seen([verb, "--http", "127.0.0.1:99999"], ExitCode.USAGE, "0 to 65535", capsys)


def no_folder(tmp_path: Path) -> Path:
    """Return a path where no folder can be made."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "folder"


MODEL = {"list": [], "show": [], "rollback": ["--to", "1"]}


@pytest.mark.parametrize("verb", MODEL)
def test_models_that_are_not_there(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model", verb, "digits", "--store", str(tmp_path), *MODEL[verb]]
    seen(arguments, ExitCode.FAILED, "--store names another store", capsys)


def test_a_demo_without_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen(["demo", "--folder", str(no_folder(tmp_path))], ExitCode.FAILED, "can be written with --folder", capsys)


def test_a_simulation_whose_server_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "server.py"
    program.write_text("raise SystemExit(3)")
    arguments = ["simulate", "--app", "none:app", "--server", str(program), "--folder", str(tmp_path / "simulation")]
    seen(arguments, ExitCode.FAILED, "ended with status 3 before the run did", capsys)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_disk_that_may_be_mended_is_worth_another_start(number: int) -> None:
    assert exit_code_of_disk(OSError(number, "no")) is ExitCode.UNAVAILABLE


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.EEXIST])
def test_a_path_that_is_wrong_is_not(number: int) -> None:
    assert exit_code_of_disk(OSError(number, "no")) is ExitCode.CONFIG


def test_app_approve_where_no_client_has_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--task-id", "digits", "--mac", "02:00:00:00:00:01", "--state-dir", str(tmp_path)]
    seen(["app", "approve", "ab" * 32, *where], ExitCode.CONFIG, "--state-dir", capsys)
