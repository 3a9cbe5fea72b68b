"""The FL server program of a bundle: its ServerApp is found in its own folder, or a sentence says why not."""

import subprocess
import sys
from pathlib import Path

import pytest
from bundles import PROJECT, zipped
from flwr.serverapp import ServerApp

from fedops_mqtt.apps import AppBundle, read_bundle
from fedops_mqtt.server.bundle_server import BundleServerError, load_server_app, unpack

APP = b"from flwr.serverapp import ServerApp\napp = ServerApp()\n"


NEEDY = PROJECT.replace("numpy>=1.26", "no-such-package-here")


def bundle_of(name: str, code: bytes = APP, project: str = PROJECT) -> bytes:
    files = {"pyproject.toml": project.replace("digits.server_app", name).encode(), f"{name}.py": code}
    return zipped(files)


def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> tuple[AppBundle, ServerApp]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    bundle = read_bundle(data)
    return bundle, load_server_app(bundle, unpack(data, bundle, tmp_path))


def test_a_bundles_server_app_comes_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, app = loaded(tmp_path, monkeypatch, bundle_of("delivered_server_one"))
    assert isinstance(app, ServerApp)
    assert sys.modules["delivered_server_one"].__file__ == str(tmp_path / bundle.digest / "delivered_server_one.py")


def test_what_only_the_devices_need_is_not_asked_of_the_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded(tmp_path, monkeypatch, bundle_of("delivered_server_eight", project=NEEDY))


@pytest.mark.parametrize(
    ("name", "code", "project", "fact"),
    [
        ("delivered_server_two", b"import no_such_module\n", PROJECT, "no_such_module"),
        ("delivered_server_three", b"raise SystemExit('my words')\n", PROJECT, "my words"),
        ("delivered_server_four", b"app = 3\n", PROJECT, "int"),
        ("delivered_server_five", b"", PROJECT, "app"),
        ("delivered_server_six", APP, PROJECT.replace('serverapp = "digits.server_app:app"', ""), "serverapp"),
        ("delivered_server_seven", b"import nothing_here", NEEDY, "no-such-package-here"),
    ],
)
def test_a_bundle_that_cannot_run_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: bytes, project: str, fact: str
) -> None:
    with pytest.raises(BundleServerError, match=fact):
        loaded(tmp_path, monkeypatch, bundle_of(name, code, project))


def run_of(tmp_path: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    own = {"APP_FILE": str(tmp_path / "app.fab"), "STORE": str(tmp_path / "store")} | settings
    return subprocess.run(
        [sys.executable, "-m", "fedops_mqtt.server.bundle_server"],
        env={"HOME": str(tmp_path)} | {f"FEDOPS_MQTT_{name}": value for name, value in own.items()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("settings", [{}, {"TASK_ID": "digits"}], ids=["no task", "by hand"])
def test_a_file_that_is_no_bundle_ends_the_program_with_a_sentence(tmp_path: Path, settings: dict[str, str]) -> None:
    (tmp_path / "app.fab").write_bytes(b"no zip")
    ended = run_of(tmp_path, **settings)
    assert ended.returncode == 1
    assert "app.fab" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_state_folder_that_cannot_be_written_is_no_fault_of_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "app.fab").write_bytes(bundle_of("delivered_server_nine"))
    (tmp_path / "state").write_bytes(b"a file")
    ended = run_of(tmp_path, TASK_ID="digits", STATE_DIR=str(tmp_path / "state"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"{tmp_path / 'state'}")
    assert "app.fab" not in ended.stderr
    assert "Traceback" not in ended.stderr
