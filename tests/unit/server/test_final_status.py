"""The final status on disk: the manager reads what the server stored, and accepts nothing else."""

from pathlib import Path

import pytest

from fedops_mqtt.aggregation.pipe_publisher import keep_final_status
from fedops_mqtt.manager.final_status import read_kept, read_stored
from fedops_mqtt.protocol import Channel, ServerCondition, ServerStatus, encode, utc_now
from fedops_mqtt.store.final_status import write_final_status


def server_status(**changes: object) -> ServerStatus:
    given = {
        "instance": "i", "epoch": 1, "seq": 2, "at": utc_now(), "status": ServerCondition.FINISHED,
        "task_id": "digits", "run_id": "run-1", "launch": 2, "metrics": {"accuracy": 0.5},
    }  # fmt: skip
    return ServerStatus.model_validate({**given, **changes})


def read(path: Path) -> ServerStatus | None:
    return read_kept(path, task_id="digits", run_id="run-1", launch=2)


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    keep_final_status(tmp_path / "word", server_status())
    assert read(tmp_path / "word") == server_status(at=read(tmp_path / "word").at)  # type: ignore[union-attr]


def test_a_later_final_status_replaces_an_earlier_one(tmp_path: Path) -> None:
    for status in (ServerCondition.FAILED, ServerCondition.FINISHED):
        keep_final_status(tmp_path / "word", server_status(status=status))
    found = read(tmp_path / "word")
    assert found is not None
    assert found.status is ServerCondition.FINISHED


def test_a_missing_final_status_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "word") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        encode(server_status(launch=1)),
        encode(server_status(run_id="run-0")),
        encode(server_status(task_id="other")),
        encode(server_status(status=ServerCondition.RUNNING)),
        encode(server_status()) + b" " * Channel.SERVER_STATUS.max_payload_bytes,
    ],
    ids=["empty", "cut", "a list", "an earlier launch", "another run", "another task", "not its last", "too long"],
)
def test_an_invalid_final_status_of_this_launch_is_logged_and_not_used(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "word").write_bytes(content)
    assert read(tmp_path / "word") is None
    assert "final status" in caplog.text


def test_a_folder_that_cannot_be_written_to_costs_the_run_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep_final_status(tmp_path / "no such folder" / "word", server_status())
    keep_final_status(None, server_status())
    assert [record.message for record in caplog.records] == ["the final status is not on disk, perhaps on the bus"]


def read_in(store: Path | str) -> ServerStatus | None:
    return read_stored(str(store), task_id="digits", run_id="run-1", launch=2)


def test_a_manager_on_another_host_reads_it_in_the_store(tmp_path: Path) -> None:
    kept = server_status()
    keep_final_status(tmp_path / "word", kept, store=str(tmp_path / "models"))
    assert read_in(tmp_path / "models") == read(tmp_path / "word")
    assert read_in(tmp_path / "no such store") is None


def test_a_server_without_a_manager_leaves_none_in_the_store(tmp_path: Path) -> None:
    keep_final_status(None, server_status(), store=str(tmp_path / "models"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "JSON"),
        (encode(server_status(launch=1)), "another launch"),
        (encode(server_status(status=ServerCondition.RUNNING)), "not final"),
        (encode(server_status()) + b" " * Channel.SERVER_STATUS.max_payload_bytes, "bytes"),
    ],
)
def test_what_is_no_final_status_of_this_launch_in_the_store_is_logged_and_not_used(
    tmp_path: Path, content: bytes, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_final_status(str(tmp_path), content, task_id="digits", run_id="run-1")
    assert read_in(tmp_path) is None
    assert problem in str(caplog.records[0].__dict__["problem"])


def test_a_store_that_cannot_be_used_is_logged_and_ends_neither_server_nor_manager(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep_final_status(tmp_path / "word", server_status(), store="no-such-scheme://models")
    assert read(tmp_path / "word") is not None
    assert read_in("no-such-scheme://models") is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
