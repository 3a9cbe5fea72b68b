"""`app approve`: the owner's word on the device, for one digest of one client."""

from pathlib import Path

import pytest

from fedops_mqtt.apps import AppLibrary
from fedops_mqtt.cli.entry import run
from fedops_mqtt.device.app_policy import app_folder
from fedops_mqtt.device.journal import identity_dir

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
def test_a_mistake_is_said_and_nothing_is_written(
    tmp_path: Path, arguments: list[str], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert approve(tmp_path, *arguments) != 0
    assert fact in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))
