"""What is reported of a round: loss, accuracy, its time and its own bytes, on the bus and on W&B alike."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fedops_mqtt.aggregation.pipe_publisher import PipeStatusPublisher
from fedops_mqtt.aggregation.rounds import RoundReport, RoundReporter
from fedops_mqtt.aggregation.run_settings import make_plan
from fedops_mqtt.aggregation.status_publisher import ServerSnapshot
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.server.server_utils import FLServerStatus

METRICS = {"loss": 0.5, "accuracy": 0.75}


def test_a_rounds_numbers_are_the_same_on_the_bus_and_on_wandb() -> None:
    plan, status = make_plan(ServerSettings(task_id="digits", run_id="r1"), None), FLServerStatus()
    shown: list[tuple[Mapping[str, Any], int]] = []
    counters = iter([(100, 1000), (130, 1700)])
    heard, said = os.pipe()
    with PipeStatusPublisher(snapshot(), descriptor=said, on_departed=lambda reason: None) as voice:
        teller = RoundReporter(
            plan=plan,
            status=status,
            sink=voice,
            show=lambda values, step: shown.append((values, step)),
            count_bytes=lambda: next(counters),
        )
        teller.begin(2)
        teller.report(RoundReport(round=2, metrics=METRICS, duration_s=1.5))
    with os.fdopen(heard) as lines:
        told = [json.loads(line) for line in lines]
    assert shown == [({**METRICS, "round_seconds": 1.5, "bytes_in": 30, "bytes_out": 700, "round": 2}, 2)]
    assert (told[0]["status"], told[0]["round"]) == ("running", 2)
    assert told[-1]["metrics"] == METRICS
    assert (told[-1]["duration_s"], told[-1]["bytes_in"], told[-1]["bytes_out"]) == (1.5, 30, 700)
    assert (status.round, status.end_by_round) == (2, 1.5)


def test_any_metric_of_a_strategy_is_published_and_nothing_raises(caplog: pytest.LogCaptureFixture) -> None:
    counters = iter([(12_000, 500), (221, 10), (0, 0), (0, 0)])  # falling, as nothing but a fault of ours could be
    heard, said = os.pipe()
    metrics: dict[str, Any] = {f"m{number}": number for number in range(300)}
    metrics |= {"x" * 300: 1.0, "nan": float("nan"), "huge": 10**400, "text": "x", "\ud800": 1, "scalar": np.float32(2)}
    with PipeStatusPublisher(snapshot(), descriptor=said, on_departed=lambda reason: None) as voice:
        teller = RoundReporter(
            plan=make_plan(ServerSettings(task_id="digits", run_id="r1"), None),
            status=FLServerStatus(),
            sink=voice,
            show=lambda values, step: None,
            count_bytes=lambda: next(counters),
        )
        teller.begin(np.int64(2))  # type: ignore[arg-type]
        teller.report(RoundReport(round=2, metrics=metrics, duration_s=float("inf")))
        teller.begin(-3)
        teller.report(RoundReport(round=-3, metrics=dict(reversed(metrics.items()))))
        voice.finish(1, metrics=metrics, model_path="/" + "x" * 1000, reason="\ud800" * 10_000, round=2**70)
    with os.fdopen(heard) as lines:
        told = [json.loads(line) for line in lines]
    rounds = [each for each in told if "seq" not in each]
    assert [(len(each["metrics"]), each.get("round")) for each in rounds] == [(256, 2), (256, 0)]
    assert rounds[1]["metrics"]["scalar"] == 2
    assert told[-1]["model_path"].startswith("/x")
    assert len([record for record in caplog.records if "256" in record.getMessage()]) == 1


def snapshot() -> ServerSnapshot:
    return ServerSnapshot(
        task_id="digits", run_id="r1", launch=1, instance="i1", heartbeat_s=60, agent={}, num_rounds=3
    )
