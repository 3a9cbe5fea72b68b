"""model list, show and rollback on a store of this machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedops_mqtt.cli.entry import run
from fedops_mqtt.runtime.systemd import ExitCode
from fedops_mqtt.store.versions import ModelStore


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("FEDOPS_MQTT_STORE", str(tmp_path))
    store = ModelStore(str(tmp_path), task_id="digits", model_name="net")
    store.save({"w": np.array([1.0, 2.0])}, run_id="r1", round=3, metrics={"accuracy": 0.9})
    store.save({"w": np.array([1.0, np.nan])}, run_id="r2", round=3)
    store.save_failed({"w": np.array([3.0, 4.0])}, run_id="r3", round=1)
    return store


def records(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert run(["model", *words, "--json"]) == ExitCode.OK
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_versions_and_failed_runs_are_listed(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    Path(store.load(1).path).write_bytes(b"not a model")
    found = records(capsys, "list", "digits")
    assert [(row["version"], row["status"], row["run_id"]) for row in found] == [
        (None, "failed run", "r3"),
        (1, "corrupt", None),
        (2, "newest", "r2"),
    ]


def test_arrays_are_shown_with_what_is_not_finite(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    about, array = records(capsys, "show", "digits")
    assert (about["version"], about["run_id"]) == (2, "r2")
    assert (array["name"], array["dtype"], array["nonfinite"]) == ("w", "float64", 1)
    assert records(capsys, "show", "digits", "--run", "r3")[0]["round"] == 1


def test_going_back_makes_a_new_version_and_removes_nothing(store: ModelStore) -> None:
    assert run(["model", "rollback", "digits", "--to", "1"]) == ExitCode.OK
    newest = store.newest()
    assert newest is not None
    assert (newest.version, newest.run_id, newest.metrics, newest.origin) == (3, "r1", {"accuracy": 0.9}, "V1")
    assert list(newest.arrays["w"]) == [1, 2]
    assert run(["model", "rollback", "digits", "--to", "3"]) == ExitCode.OK
    assert store.versions() == [1, 2, 3]


def test_a_run_starts_with_a_failed_runs_model_only_on_request(store: ModelStore) -> None:
    assert run(["model", "rollback", "digits", "--run", "r3"]) == ExitCode.OK
    newest = store.newest()
    assert newest is not None
    assert (newest.version, list(newest.arrays["w"])) == (3, [3, 4])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["rollback", "digits", "--to", "2"], ExitCode.FAILED, "V2 is not finite"),
        (["rollback", "digits", "--to", "99"], ExitCode.FAILED, "V1, V2"),
        (["rollback", "digits", "--run", "nobody"], ExitCode.FAILED, "nobody"),
        (["rollback", "digits"], ExitCode.USAGE, "--to"),
        (["rollback", "digits", "--to", "1", "--run", "r3"], ExitCode.USAGE, "--run"),
        (["show", "digits", "--name", "other"], ExitCode.FAILED, "it has net"),
        (["list", "nothing"], ExitCode.FAILED, "no models of task 'nothing'"),
        (["list", "../digits"], ExitCode.CONFIG, "../digits"),
        (["list", "digits", "--store", "http://host/"], ExitCode.FAILED, "s3://"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    store: ModelStore, capsys: pytest.CaptureFixture[str], words: list[str], code: ExitCode, said: str
) -> None:
    assert run(["model", *words]) == code
    assert said in capsys.readouterr().err
    assert store.versions() == [1, 2]


def test_of_several_models_one_has_to_be_named(store: ModelStore, tmp_path: Path) -> None:
    ModelStore(str(tmp_path), task_id="digits", model_name="other").save({"w": np.zeros(1)})
    assert run(["model", "show", "digits"]) == ExitCode.USAGE
    assert run(["model", "show", "digits", "--name", "other"]) == ExitCode.OK


def test_a_corrupt_file_is_a_sentence(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    Path(store.load(1).path).write_bytes(b"not a model")
    assert run(["model", "rollback", "digits", "--to", "1"]) == ExitCode.FAILED
    assert "is corrupt" in capsys.readouterr().err
