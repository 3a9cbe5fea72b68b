"""The thread that publishes for an FL server: no failure of it keeps the run waiting for ever or ends it."""

import dataclasses
import logging
import threading

import pytest

from fedops_mqtt.aggregation.status_publisher import BusCallbacks, ServerSnapshot, ServerStatusPublisher
from fedops_mqtt.bus import BusOptions
from fedops_mqtt.protocol import IdentityError, ServerCondition, ServerMetrics, ServerStatus, utc_now

SNAPSHOT = ServerSnapshot(task_id="digits", run_id="r1", launch=1, instance="i1", heartbeat_s=60, agent={})
NOBODY_THERE = "mqtt://127.0.0.1:1"


class Epochs:
    """Keeps epochs on a disk that fails in a way that nobody has foreseen, or does not fail."""

    def __init__(self, *, is_broken: bool) -> None:
        self._is_broken = is_broken

    def load(self) -> int:
        if self._is_broken:
            raise RuntimeError("unforeseen")
        return 0

    def save(self, epoch: int) -> None:
        pass


class HangingEpochs(Epochs):
    """Keeps epochs in a folder of another machine that does not answer until `release` is set."""

    def __init__(self) -> None:
        super().__init__(is_broken=False)
        self.is_asked = threading.Event()
        self.release = threading.Event()

    def load(self) -> int:
        self.is_asked.set()
        self.release.wait()
        return 0


def announcer(
    snapshot: ServerSnapshot, kept: list[ServerStatus], *, is_broken: bool = False, epochs: Epochs | None = None
) -> ServerStatusPublisher:
    return ServerStatusPublisher(
        snapshot,
        url=NOBODY_THERE,
        options=BusOptions(),
        epochs=epochs or Epochs(is_broken=is_broken),
        callbacks=BusCallbacks(on_client_ended=lambda mac, last: None, on_replaced=lambda reason: None),
        keep_final_status=kept.append,
    )


def test_an_error_of_any_kind_at_its_start_reaches_the_caller_that_waits_for_it() -> None:
    with pytest.raises(IdentityError), announcer(dataclasses.replace(SNAPSHOT, task_id="no task"), []):
        pass


@pytest.mark.parametrize("is_broken", [True, False])
def test_a_run_goes_on_and_ends_without_its_bus(caplog: pytest.LogCaptureFixture, *, is_broken: bool) -> None:
    kept: list[ServerStatus] = []
    with announcer(SNAPSHOT, kept, is_broken=is_broken) as voice:
        if is_broken:
            voice._thread.join()
        voice.update(status=ServerCondition.RUNNING, metrics={f"m{number}": float(number) for number in range(300)})
        voice.publish_metrics(ServerMetrics(task_id="digits", run_id="r1", round=1, at=utc_now()))
        assert voice.finish(0.2, status=ServerCondition.FINISHED, reason="\ud800" * 9000, model_path="/" * 999) is False
    assert (kept[0].status, len(kept[0].metrics)) == (ServerCondition.FINISHED, 256)
    lost = [record for record in caplog.records if record.levelno >= logging.ERROR and "lost" in record.getMessage()]
    assert len(lost) == is_broken


def test_a_bus_that_does_not_end_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    epochs = HangingEpochs()
    try:
        with announcer(SNAPSHOT, [], epochs=epochs) as voice:
            epochs.is_asked.wait()
        assert voice._thread.is_alive()
    finally:
        epochs.release.set()
        voice._thread.join()
    assert "has not ended" in caplog.text
