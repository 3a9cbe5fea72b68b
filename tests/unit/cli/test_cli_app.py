"""The verbs about apps: approvals on a device, and mistakes that are said before anything is published or started."""

from pathlib import Path

import pytest

from fedops_mqtt.apps import AppLibrary
from fedops_mqtt.cli.entry import run
from fedops_mqtt.core.client_state import ClientState
from fedops_mqtt.device.app_policy import app_folder
from fedops_mqtt.device.journal import ClientJournal, identity_dir
from fedops_mqtt.protocol import Answer, LastTrigger

MAC = "02:00:00:00:00:01"
DIGEST = "ab" * 32


def approve(tmp_path: Path, *arguments: str) -> int:
    return run(["app", "approve", *arguments, "--mac", MAC, "--state-dir", str(tmp_path)])


def test_an_approval_is_written_down_and_taken_back(tmp_path: Path) -> None:
    folder = identity_dir(tmp_path, "digits", MAC)
    folder.mkdir(parents=True)
    library = AppLibrary(app_folder(folder))
    assert approve(tmp_path, DIGEST.upper(), "--task-id", "digits") == 0
    assert library.is_approved(DIGEST)
    assert approve(tmp_path, DIGEST, "--task-id", "digits", "--withdraw") == 0
    assert approve(tmp_path, DIGEST, "--task-id", "digits", "--withdraw") == 0
    assert not library.is_approved(DIGEST)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["digits-1.2", "--task-id", "digits"], "digits-1.2"),
        (["../" + "a" * 61, "--task-id", "digits"], "64 hexadecimal"),
        ([DIGEST], "--task-id"),
        ([DIGEST, "--task-id", "digist"], "digist"),
    ],
)
def test_a_mistake_is_reported_and_nothing_is_written(
    tmp_path: Path, arguments: list[str], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert approve(tmp_path, *arguments) != 0
    assert fact in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))


def test_an_approval_of_another_digest_than_was_rejected_last_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = identity_dir(tmp_path, "digits", MAC)
    reason = f"not approved; fedops-mqtt app approve {DIGEST}"
    facts = {"run_id": "r1", "attempt": 1, "launch": 1, "answer": Answer.REJECTED}
    rejected = LastTrigger.model_validate(facts | {"reason": reason, "reason_code": "app-not-approved"})
    ClientJournal(folder).save(ClientState(last_trigger=rejected))
    assert approve(tmp_path, DIGEST, "--task-id", "digits") == 0
    assert capsys.readouterr().err == ""
    mistyped = "0" + DIGEST[1:]
    assert approve(tmp_path, mistyped, "--task-id", "digits") == 0
    assert f"another app: {DIGEST}" in capsys.readouterr().err


NO_APP = '[project]\nname = "x"\nversion = "1"\n'


@pytest.mark.parametrize(
    ("project", "sentence"),
    [
        (None, "no pyproject.toml; name the project's folder"),
        (b"\xff\xfe", "pyproject.toml is no TOML file in UTF-8"),
        (b"a = [", "pyproject.toml is no TOML file in UTF-8"),
        (NO_APP.encode(), "Missing [tool.flwr.app] section"),
    ],
)
def test_a_folder_that_is_no_project_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], project: bytes | None, sentence: str
) -> None:
    if project is not None:
        (tmp_path / "pyproject.toml").write_bytes(project)
    assert run(["run", str(tmp_path), "--manager", "http://127.0.0.1:1"]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_a_file_that_is_no_bundle_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "x.fab").write_bytes(content)
    assert run(["app", "publish", str(tmp_path / "x.fab"), "--task", "x", "--manager", "http://127.0.0.1:1"]) == 1
    assert "app-malformed" in (said := capsys.readouterr().err)
    assert "name a file that `flwr build` made" in said


@pytest.mark.parametrize("config", ["lr", "lr=NaN", "lr=nan", "lr=inf", "lr=[1]", "=1"])
def test_settings_of_a_run_that_are_none_are_a_sentence(capsys: pytest.CaptureFixture[str], config: str) -> None:
    for verb in ("start", "run"):  # `run` says so before it builds or publishes anything
        assert run([verb, "digits", "--run-config", config, "--manager", "http://127.0.0.1:1"]) == 2
        assert "--run-config: " in capsys.readouterr().err
