"""Local models in FedOps' folders: the newest by its number, never unpickled, never another model's."""

import pickle
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from fedops_mqtt.client.client_utils import download_local_model, local_model_directory, local_model_stem
from fedops_mqtt.client.registered_client import RegisteredClient
from fedops_mqtt.model_types import make_adapter
from fedops_mqtt.model_types.model_type import save_arrays


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(version: int, value: float) -> Path:
    stem = local_model_stem("t", "Net", version)
    return save_arrays(stem, {"0": np.full(2, value)})


def test_the_folder_is_made_and_its_files_are_named(folder: Path) -> None:
    assert local_model_directory("t") == []
    assert (folder / "local_model" / "t").is_dir()
    assert save(1, 1.0).resolve() == folder / "local_model" / "t" / "Net_local_model_V1.safetensors"
    assert local_model_directory("t") == ["Net_local_model_V1.safetensors"]


def test_the_newest_is_by_number(folder: Path) -> None:
    local_model_directory("t")
    for version in (2, 10, 9):
        save(version, float(version))
    model = download_local_model("Numpy", "t", local_model_directory("t"), [np.zeros(2)])
    np.testing.assert_array_equal(model[0], [10.0, 10.0])


def test_without_any_the_model_is_as_it_was() -> None:
    mine = [np.zeros(2)]
    assert download_local_model("Numpy", "t", ["notes.txt", "Net_local_model_Vx.safetensors"], mine) is mine


def test_a_pickle_under_the_name_of_a_model_is_not_loaded(folder: Path) -> None:
    local_model_directory("t")
    Path("local_model/t/Net_local_model_V3.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is damaged"):
        download_local_model("Numpy", "t", local_model_directory("t"), [np.zeros(2)])
    assert not Path("sprung").exists()


class Trap:
    """Leaves a file behind if anybody unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("sprung"),)  # type: ignore[return-value]


def test_a_full_disk_costs_the_copy_of_the_model_and_not_the_update(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit on a file's size fails a write in the middle, as a full disk does, and needs no disk."""
    registration = {
        "model": [np.zeros(1000)],
        "train_numpy": lambda model, data, epochs, cfg: [array + 1 for array in model],
        "test_numpy": lambda model, data, cfg: (0.5, 0.5, None),
        "train_data": range(4),
        "test_data": range(4),
    }
    names = {"fl_task_id": "t", "client_mac": "02:00:00:00:00:01", "client_name": "pi", "model_name": "Net"}
    client = RegisteredClient(make_adapter("Numpy", registration, None), cfg={}, gl_model=1, **names)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        arrays, num_examples, _ = client.fit([np.ones(1000)], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert num_examples == 4
    np.testing.assert_array_equal(arrays[0], np.full(1000, 2.0))
    assert "the local copy of the model is not kept" in caplog.text
    assert list((folder / "local_model" / "t").iterdir()) == []
