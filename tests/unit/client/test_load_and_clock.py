"""What the daemon measures while it trains, and where a message's time goes."""

import asyncio

import pytest

from fedops_mqtt.device.load_meter import LoadMeter
from fedops_mqtt.device.system_load import measure_load
from fedops_mqtt.protocol import CurrentRun, MetricsKind, Phase
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.training.pipe import MetricsReport
from fedops_mqtt.training.run import PhaseClock

PATIENCE_S = 300.0
IN_HAND = CurrentRun(run_id="r", attempt=1, launch=1, phase=Phase.TRAINING, round=3)


def test_a_reading_has_the_fields_of_fedops() -> None:
    values = LoadMeter().read()
    assert set(values) == {
        "runtime", "cpu", "cpu_threads", "memory", "memory_percent", "memory_rssMB", "memory_availableMB",
        "network_sent", "network_recv", "disk",
    }  # fmt: skip
    assert 0 < values["memory"] <= 100
    assert values["memory_availableMB"] > 0


async def test_it_is_measured_while_a_run_is_in_hand_and_not_before() -> None:
    told: asyncio.Queue[MetricsReport] = asyncio.Queue()
    asked = asyncio.Event()
    active_training: list[CurrentRun] = []

    def run() -> CurrentRun | None:
        asked.set()
        return active_training[0] if active_training else None

    async with alongside(measure_load(run=run, publish=told.put_nowait, interval_s=0.01), name="load"):
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        assert told.empty()
        active_training.append(IN_HAND)
        report = await asyncio.wait_for(told.get(), PATIENCE_S)
    assert (report.kind, report.round) == (MetricsKind.SYSTEM, 3)


class NoMeter:
    def read(self) -> dict[str, float]:
        raise PermissionError("/proc/stat")


async def test_a_system_that_cannot_be_measured_costs_one_warning_and_no_daemon(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[MetricsReport] = []
    async with asyncio.timeout(300):
        await measure_load(run=lambda: IN_HAND, publish=told.append, interval_s=0.01, start_meter=NoMeter)
    assert told == []
    (warning,) = caplog.records
    assert "/proc/stat" in warning.__dict__["problem"]


def test_the_time_of_a_message_is_reported_when_it_is_uploaded() -> None:
    told: list[MetricsReport] = []
    clock = PhaseClock(told.append)
    for phase in (Phase.WAITING, Phase.DOWNLOADING, Phase.TRAINING):
        clock.enter(phase)
    clock.hold(MetricsReport(kind=MetricsKind.ROUND, round=1, values={"loss": 0.5}))
    clock.enter(Phase.UPLOADING)
    assert told == []
    clock.enter(Phase.WAITING)
    (report,) = told
    assert report.values["loss"] == 0.5
    spent = [report.values[name] for name in ("wait_s", "download_s", "compute_s", "upload_s")]
    assert all(isinstance(each, float) and each >= 0 for each in spent)
    clock.flush()
    assert len(told) == 1


def test_metrics_that_are_held_at_the_end_are_published() -> None:
    told: list[MetricsReport] = []
    clock = PhaseClock(told.append)
    clock.enter(Phase.EVALUATING)
    clock.hold(MetricsReport(kind=MetricsKind.ROUND, values={}))
    clock.flush()
    assert len(told) == 1
