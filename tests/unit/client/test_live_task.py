"""Live objects go to the training process by pickle; one that cannot is named, with what to do."""

import os
import threading
from pathlib import Path

import pytest

from fedops_mqtt.client.app import FLClientTask
from fedops_mqtt.training.live_task import LIVE, LiveTaskError, pack, unpack

MAC = "02:00:00:00:00:01"


def test_objects_come_back_as_often_as_they_are_asked_for(tmp_path: Path) -> None:
    offset = 2
    file = pack({"f": lambda x: x + offset}, {"a": 1}, tmp_path / "state")
    for _ in range(2):
        fl_task, cfg = unpack(os.dup(file.fileno()))
        assert (fl_task["f"](1), cfg) == (3, {"a": 1})
    descriptor = file.fileno()
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize(
    ("fl_task", "cfg", "culprit"),
    [
        ({"model": 1, "train_loader": threading.Lock()}, {}, r"fl_task\['train_loader'\] \(a lock\)"),
        (threading.Lock(), {}, r"fl_task \(a lock\)"),
        ({"model": 1}, {"x": threading.Lock()}, r"cfg \(a dict\)"),
    ],
)
def test_what_cannot_be_sent_is_named(tmp_path: Path, fl_task: object, cfg: object, culprit: str) -> None:
    with pytest.raises(LiveTaskError, match=rf"{culprit} cannot be sent .*'my_task:make_fl_task'"):
        pack(fl_task, cfg, tmp_path)


def test_a_registration_is_alive_and_an_app_in_a_module_is_imported(tmp_path: Path) -> None:
    cfg = {"task_id": "t"}
    assert FLClientTask(cfg, {"model": [1]}, mac=MAC, state_dir=tmp_path).settings.app == LIVE
    assert FLClientTask(cfg, object(), mac=MAC, state_dir=tmp_path).settings.app == LIVE
    assert FLClientTask(cfg, os.path.join, mac=MAC, state_dir=tmp_path).settings.app == "posixpath:join"


def test_an_invalid_setting_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="num_partition"):
        FLClientTask({"task_id": "t"}, "m:a", mac=MAC, num_partition=3)
