import errno
import json
import os
import resource
import signal
import stat
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import load_file

from fedops_mqtt.manager.files import list_models
from fedops_mqtt.protocol import IdentityError
from fedops_mqtt.store.errors import CorruptFileError, StoreUrlError, UnsupportedArrayError
from fedops_mqtt.store.tensor_file import check_storable, read_facts, read_tensors
from fedops_mqtt.store.versions import ModelStore, list_model_files

WEIGHTS = {"z": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(7, np.int64), "m": np.zeros(0, np.float64)}


def open_store(root: Path, task_id: str = "digits", model_name: str = "net") -> ModelStore:
    return ModelStore(str(root), task_id=task_id, model_name=model_name)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name], equal_nan=True)
        for name in left
    )


def test_an_empty_store_has_no_version_and_the_first_is_1(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.newest() is None
    assert store.save(WEIGHTS).version == 1
    assert (tmp_path / "digits" / "net_gl_model_V1.safetensors").is_file()


def test_what_was_saved_is_read_again_in_order_with_its_facts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(WEIGHTS, run_id="r1", round=5, metrics={"accuracy": 0.5})
    found = store.newest()
    assert found is not None
    assert same(found.arrays, WEIGHTS)
    assert (found.version, found.run_id, found.round, found.metrics) == (1, "r1", 5, {"accuracy": 0.5})


@settings(deadline=None)  # files are written and synced
@given(
    st.dictionaries(
        st.text(max_size=8),
        npst.arrays(
            st.sampled_from([np.bool_, np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64, ">f4", ">i8"]),
            npst.array_shapes(min_dims=0, min_side=0, max_side=3),
        ),
        max_size=4,
    )
)
def test_any_numeric_arrays_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, arrays: dict) -> None:
    store = open_store(tmp_path_factory.mktemp("store"))
    store.save(arrays)
    found = store.newest()
    assert found is not None
    little = {name: array.astype(array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    assert same(found.arrays, little)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    saved = open_store(tmp_path).save(WEIGHTS)
    assert np.array_equal(load_file(saved.path)["z"], WEIGHTS["z"])


def test_newest_is_by_number_not_by_name_or_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in range(11):
        store.save({"n": np.array(number)})
    newest = store.newest()
    assert newest is not None
    assert (newest.version, int(newest.arrays["n"])) == (11, 10)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "huge header"])
def test_a_corrupt_newest_version_is_skipped_and_logged(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    store.save({"n": np.arange(100)})
    path = Path(store.save({"n": np.arange(1000)}).path)
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-1],
            "flip": data[:-50] + bytes([data[-50] ^ 1]) + data[-49:],
            "empty": b"",
            "text": b"not a model",
            "huge header": struct.pack("<Q", 2**63) + data[8:],
        }[damage]
    )
    newest = store.newest()
    assert newest is not None
    assert newest.version == 1
    assert newest.passed_over == (str(path),)
    assert "global model passed over" in caplog.text
    with pytest.raises(CorruptFileError, match="is corrupt"):
        store.load(2)
    assert store.save(WEIGHTS).version == 3


def test_changed_facts_do_not_pass_the_checksum(tmp_path: Path) -> None:
    path = Path(open_store(tmp_path).save(WEIGHTS, run_id="run-a").path)
    path.write_bytes(path.read_bytes().replace(b"run-a", b"run-b"))
    with pytest.raises(CorruptFileError, match="checksum"):
        open_store(tmp_path).load(1)


def test_two_servers_at_once_each_get_a_version_of_their_own(tmp_path: Path) -> None:
    def save(number: int) -> tuple[int, int]:
        return number, open_store(tmp_path).save({"n": np.array(number)}).version

    with ThreadPoolExecutor(8) as threads:
        saved = list(threads.map(save, range(24)))
    store = open_store(tmp_path)
    assert sorted(version for _, version in saved) == list(range(1, 25))
    assert all(int(store.load(version).arrays["n"]) == number for number, version in saved)


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(UnsupportedArrayError, match="'names' has dtype object"):
        store.save({"names": np.array([{}, None])})
    assert list((tmp_path / "digits").iterdir()) == []


def test_what_a_crashed_save_left_is_no_version_and_goes_away_in_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(WEIGHTS)
    left = tmp_path / "digits" / ".net_gl_model_V2.safetensors.0123.tmp"
    left.write_bytes(b"half")
    assert store.versions() == [1]
    store.save(WEIGHTS)
    assert left.exists(), "a younger one may be another server's, at work"
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(left, (long_ago, long_ago))
    store.save(WEIGHTS)
    assert not left.exists()


@pytest.mark.parametrize("name", ["..", "a/b", "../x", "", "a" * 65, "x\0", "ü"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IdentityError):
        open_store(tmp_path, task_id=name)
    with pytest.raises(IdentityError, match="model_name"):
        open_store(tmp_path, model_name=name)


def test_models_of_other_names_and_tasks_are_not_seen(tmp_path: Path) -> None:
    open_store(tmp_path, model_name="other").save(WEIGHTS)
    open_store(tmp_path, task_id="elsewhere").save(WEIGHTS)
    assert open_store(tmp_path).newest() is None
    assert open_store(tmp_path, model_name="o.her").newest() is None


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    ModelStore(f"file://{tmp_path}", task_id="digits", model_name="net").save(WEIGHTS)
    assert open_store(tmp_path).versions() == [1]


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "http://host/x", "file://host/x"])
def test_a_store_that_is_not_supported_is_named(url: str) -> None:
    with pytest.raises(StoreUrlError, match="model store"):
        ModelStore(url, task_id="digits", model_name="net")


def test_a_failed_runs_model_is_kept_beside_and_is_never_the_newest(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(WEIGHTS, run_id="good")
    kept = store.save_failed({"w": np.ones(3)}, run_id="run-9", round=2, metrics={"accuracy": 0.1})
    assert Path(kept.path).name == "net_gl_model_failed_run-9.safetensors"
    assert (store.versions(), store.next_version()) == ([1], 2)
    files = list_model_files(str(tmp_path), "digits")
    assert [(file.model_name, file.version, file.run_id) for file in files] == [("net", 0, "run-9"), ("net", 1, "good")]
    newest, found = store.newest(), store.load_failed("run-9")
    assert newest is not None
    assert newest.run_id == "good"
    assert (found.version, found.run_id, found.round, found.metrics) == (0, "run-9", 2, {"accuracy": 0.1})
    assert same(found.arrays, {"w": np.ones(3)})


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS])
def test_a_file_system_without_hard_links_keeps_versions_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_links(source: object, target: object) -> None:
        if os.path.exists(str(target)):
            raise FileExistsError(target)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    test_two_servers_at_once_each_get_a_version_of_their_own(tmp_path)
    assert not [path for path in (tmp_path / "digits").iterdir() if path.suffix != ".safetensors"]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        whole(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert open_store(tmp_path).save(WEIGHTS).version == 1


def test_a_full_disk_is_an_os_error_that_names_it_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on a file's size fails a write in the middle, as a full disk does, and needs no disk."""
    store = open_store(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised:
            store.save({"w": np.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.errno == errno.EFBIG
    assert list((tmp_path / "digits").iterdir()) == []


def test_room_is_looked_for_before_it_is_needed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.check_writable(1000)
    assert store.versions() == []
    with pytest.raises(OSError, match="bytes are free") as raised:
        store.check_writable(1 << 60)
    assert raised.value.errno == errno.ENOSPC
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        open_store(tmp_path / "file").check_writable(1)


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": np.zeros(2, np.complex64)},
        {"w": np.zeros(2, np.longdouble)},
        {"w": np.zeros(2, "V2")},  # what bfloat16 of other libraries looks like
        {"w": np.array(["a"])},
        {"__metadata__": np.zeros(2)},
        {"\ud800": np.zeros(2)},
    ],
    ids=repr,
)
def test_what_cannot_be_stored_is_named_before_anything_is_written(tmp_path: Path, arrays: dict) -> None:
    with pytest.raises(UnsupportedArrayError, match="cannot hold"):
        check_storable(arrays)
    with pytest.raises(UnsupportedArrayError):
        open_store(tmp_path).save(arrays)


def test_what_a_killed_safetensors_left_is_no_version_and_goes_away_in_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(WEIGHTS)
    left = tmp_path / "digits" / ".tmpAbC123"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    store.save(WEIGHTS)
    assert not left.exists()


@pytest.mark.parametrize("name", ["__metadata__", "facts"])
def test_a_header_that_is_nested_without_an_end_is_a_corrupt_file(tmp_path: Path, name: str) -> None:
    nested = "[" * 200_000
    header = nested if name == "__metadata__" else json.dumps({"__metadata__": {"order": "[]", "facts": nested}})
    path = tmp_path / "t" / "m_gl_model_V1.safetensors"
    path.parent.mkdir()
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with path.open("rb") as file, pytest.raises(ValueError):
        read_facts(file)
    with pytest.raises(CorruptFileError):
        read_tensors(path)
    assert list_models(str(tmp_path), "t") == []
