"""What is told of a round: loss, accuracy, its time and its own bytes, on the bus and on W&B alike."""

import json
import os
from collections.abc import Mapping
from typing import Any

from fedops_mqtt.server.pipe_announcer import PipeAnnouncer
from fedops_mqtt.server.plan import make_plan
from fedops_mqtt.server.round_teller import RoundTeller
from fedops_mqtt.server.rounds import RoundReport
from fedops_mqtt.server.server_utils import FLServerStatus
from fedops_mqtt.server.snapshot import ServerSnapshot
from fedops_mqtt.settings import ServerSettings

METRICS = {"loss": 0.5, "accuracy": 0.75}


def test_a_rounds_numbers_are_the_same_on_the_bus_and_on_wandb() -> None:
    plan, status = make_plan(ServerSettings(task_id="digits", run_id="r1"), None), FLServerStatus()
    shown: list[tuple[Mapping[str, Any], int]] = []
    counters = iter([(100, 1000), (130, 1700)])
    heard, said = os.pipe()
    with PipeAnnouncer(snapshot(), descriptor=said, on_gone=lambda reason: None) as voice:
        teller = RoundTeller(
            plan=plan,
            status=status,
            voice=voice,
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


def snapshot() -> ServerSnapshot:
    return ServerSnapshot(
        task_id="digits", run_id="r1", launch=1, instance="i1", heartbeat_s=60, agent={}, num_rounds=3
    )
