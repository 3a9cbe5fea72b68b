"""The model store on S3, against moto's server: versions, rivals, crashes, corrupt files, FedOps' own calls."""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from server_parts import BUCKET

from fedops_mqtt.aggregation.checkpoint import Checkpoint, CheckpointStore
from fedops_mqtt.server.server_utils import aws_session, model_download_s3, upload_model_to_bucket
from fedops_mqtt.store.errors import StoreUrlError
from fedops_mqtt.store.folder import open_folder
from fedops_mqtt.store.versions import ModelStore


def store_at(name: str = "net") -> ModelStore:
    return ModelStore(f"s3://{BUCKET}/fl", task_id="digits", model_name=name)


def test_versions_are_saved_and_the_newest_is_read(s3: fsspec.AbstractFileSystem) -> None:
    store = store_at()
    assert store.newest() is None
    assert store.save({"w": np.arange(3.0)}, run_id="r1").path == f"s3://{BUCKET}/fl/digits/net_gl_model_V1.safetensors"
    store.save({"w": np.arange(4.0)}, run_id="r2", metrics={"accuracy": 0.5})
    found = store_at().newest()
    assert found is not None
    assert (found.version, found.run_id, found.metrics) == (2, "r2", {"accuracy": 0.5})
    np.testing.assert_array_equal(found.arrays["w"], np.arange(4.0))


def test_two_servers_at_once_never_write_over_each_other(s3: fsspec.AbstractFileSystem) -> None:
    def save(number: int) -> int:
        return store_at().save({"w": np.full(2, number)}).version

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(save, range(8))) == list(range(1, 9))
    assert {int(store_at().load(version).arrays["w"][0]) for version in range(1, 9)} == set(range(8))


def test_a_corrupt_newest_version_falls_back_and_is_logged(s3: fsspec.AbstractFileSystem) -> None:
    store = store_at()
    good = store.save({"w": np.arange(3.0)})
    newest = store.save({"w": np.arange(3.0)}).path
    content = bytearray(s3.cat_file(newest))
    content[-1] ^= 1
    s3.pipe_file(newest, bytes(content))
    found = store_at().newest()
    assert found is not None
    assert (found.version, found.passed_over) == (good.version, (newest,))


@pytest.mark.long
def test_a_server_that_is_killed_while_it_uploads_leaves_no_version(s3: fsspec.AbstractFileSystem) -> None:
    program = f"""
import numpy as np
from fedops_mqtt.store.versions import ModelStore
store = ModelStore("s3://{BUCKET}/fl", task_id="digits", model_name="net")
store.save({{"w": np.zeros({LARGE_BYTES} // 8)}})
"""
    with subprocess.Popen([sys.executable, "-c", program]) as server:
        try:
            until(lambda: num_parts_of_uploads(s3) > 0)
            assert server.poll() is None, "it has more than one part to upload"
        finally:
            server.kill()
    assert store_at().newest() is None
    assert store_at().save({"w": np.ones(3)}).version == 1


LARGE_BYTES = 300 * 2**20
"""s3fs uploads it in six parts, two at once."""


def num_parts_of_uploads(s3: fsspec.AbstractFileSystem) -> int:
    uploads = s3.call_s3("list_multipart_uploads", Bucket=BUCKET).get("Uploads", [])
    names = [{"Bucket": BUCKET, "Key": each["Key"], "UploadId": each["UploadId"]} for each in uploads]
    return sum(len(s3.call_s3("list_parts", **name).get("Parts", [])) for name in names)


def until(is_true: Callable[[], bool], timeout_s: float = 300.0) -> None:
    end = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_a_checkpoint_is_replaced_and_removed(s3: fsspec.AbstractFileSystem) -> None:
    checkpoints = CheckpointStore(f"s3://{BUCKET}/fl", task_id="digits")
    assert checkpoints.load("r1") is None
    for round_ in (1, 2):
        arrays = {"w": np.full(2, round_)}
        checkpoints.save(Checkpoint(run_id="r1", launch=1, round=round_, gl_model=1, arrays=arrays))
    found = checkpoints.load("r1")
    assert found is not None
    assert found.round == 2
    checkpoints.remove("r1")
    checkpoints.remove("r1")
    assert checkpoints.load("r1") is None


def test_a_place_that_does_not_answer_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(OSError, match="s3://models/fl/digits"):
        store_at().newest()


def test_places_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(StoreUrlError, match="nothing can be written"):
        open_folder("https://host/models")


@pytest.mark.long
def test_fedops_upload_and_download(
    s3: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUCKET_NAME", BUCKET)
    monkeypatch.setenv("ACCESS_KEY_ID", "key")
    monkeypatch.setenv("ACCESS_SECRET_KEY", "secret")
    mine = [np.zeros(3)]
    assert model_download_s3("digits", "Numpy", mine) == (mine, None, 0)
    saved = ModelStore(".", task_id="local", model_name="Net").save({"0": np.arange(3.0)})
    Path(saved.path).rename("Net_gl_model_V7.safetensors")
    upload_model_to_bucket("digits", "Net_gl_model_V7.safetensors")
    model, name, version = model_download_s3("digits", "Numpy", mine)
    assert (name, version) == ("Net", 7)
    np.testing.assert_array_equal(model[0], np.arange(3.0))
    keys = aws_session().client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]
    assert [each["Key"] for each in keys] == ["digits/Net_gl_model_V7.safetensors"]
