"""Local models in FedOps' folders: the newest by its number, never unpickled, never another model's."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from fedops_mqtt.client.client_utils import download_local_model, local_model_directory, local_model_stem
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
