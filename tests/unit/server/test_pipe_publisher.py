"""A server that reports on a pipe detects that its reader is gone, also while it reports nothing."""

import os
import queue

import pytest

from fedops_mqtt.aggregation.pipe_publisher import PipeStatusPublisher
from fedops_mqtt.aggregation.status_publisher import ServerSnapshot

PATIENCE_S = 300.0


@pytest.fixture
def snapshot() -> ServerSnapshot:
    return ServerSnapshot(task_id="t", run_id="r", launch=1, instance="i", heartbeat_s=60.0, agent={})


def test_a_missing_reader_is_detected_though_nothing_is_written(snapshot: ServerSnapshot) -> None:
    read, write = os.pipe()
    gone: queue.Queue[str] = queue.Queue()
    with PipeStatusPublisher(snapshot, descriptor=write, on_departed=gone.put):
        os.close(read)
        assert gone.get(timeout=PATIENCE_S)


def test_a_reader_that_is_there_is_not_missed(snapshot: ServerSnapshot) -> None:
    read, write = os.pipe()
    gone: queue.Queue[str] = queue.Queue()
    with PipeStatusPublisher(snapshot, descriptor=write, on_departed=gone.put) as announcer:
        announcer.update(round=1)
        assert os.read(read, 2**16).endswith(b"\n")
    os.close(read)
    assert gone.empty()
