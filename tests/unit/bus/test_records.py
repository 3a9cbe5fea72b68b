"""The records that the bus yields of clients and runs are those of the manager's API."""

import json
from typing import Any

import pytest

from fedops_mqtt.bus.events import Received
from fedops_mqtt.bus.fleet_view import FleetView, client_record, run_record
from fedops_mqtt.manager.api.models import ClientRecord, RunSummary
from fedops_mqtt.protocol import ClientMetrics, ClientStatus, RunStatus, topics, utc_now

TASK, MAC = "digits", "02:00:00:00:00:01"

BUSY = {
    "client_name": "kitchen",
    "status": "train-started",
    "run": {"run_id": "r2", "attempt": 2, "launch": 1, "phase": "training", "round": 3},
    "last_run": {"run_id": "r1", "attempt": 1, "outcome": "failed", "reason": "lost", "reason_code": "interrupted"},
    "last_trigger": {"run_id": "r2", "attempt": 2, "launch": 1, "answer": "accepted"},
    "server_ip": "fl.local:8080",
    "gl_model": 7,
    "agent": {"version": "0.1.0"},
}


def client(seq: int, **facts: Any) -> ClientStatus:
    fenced = {"instance": "i", "epoch": 1, "seq": seq, "at": utc_now(), "heartbeat_s": 10}
    return ClientStatus(**{**fenced, "task_id": TASK, "client_mac": MAC, "status": "online", **facts})


def run(**facts: Any) -> RunStatus:
    fenced = {"instance": "m", "epoch": 1, "seq": 1, "at": utc_now(), "term": 3, "created_at": utc_now()}
    return RunStatus(**{**fenced, "run_id": "r1", "task_id": TASK, "status": "running", **facts})


OUT = {"status": "client-out", "reason": "lost"}


@pytest.mark.parametrize("facts", [{}, BUSY, OUT], ids=["idle", "training", "out"])
@pytest.mark.parametrize("now", [0.0, 100.0], ids=["in its lease", "silent"])
def test_a_clients_record_is_the_apis_but_for_times_and_numbers(facts: dict[str, Any], now: float) -> None:
    fleet_view = FleetView()
    fleet_view.fleet.listen(0.0)
    fleet_view.apply_status(client(1, **facts), now=0.0, is_retained=False)
    fleet_view.expire(now)
    (view,) = fleet_view.clients()
    theirs = ClientRecord.of(view).model_dump(mode="json", exclude={"since", "heard_at"})
    assert client_record(fleet_view, view) == {"kind": "client", **theirs, "metrics": {}}


ONLY_A_MANAGERS = {
    "created_at": "2026-11-24T10:15:30Z",
    "ended_at": None,
    "join": "open",
    "app_digest": None,
    "app_version": None,
    "run_config": {},
    "is_adopted": False,
    "is_stopping": False,
}


def test_a_runs_record_is_the_apis_summary_without_what_only_a_manager_has() -> None:
    told = {"launch": 1, "server_ip": "fl.local:8080", "round": 2, "num_rounds": 5, "min_clients": 3, "gl_model": 2}
    numbers = {"metrics": {"accuracy": 0.5, "loss": float("nan")}, "clients_by_status": {"training": 2, "lost": 1}}
    ended = {"status": "finished", "outcome": "failed", "reason": "no clients", "model_path": "/m/1.safetensors"}
    record = run_record(run(**told, **numbers, **ended, ended_at=utc_now()))
    summary = RunSummary.model_validate({**record, **ONLY_A_MANAGERS}).model_dump(mode="json")
    assert record == {"kind": "run", **{name: summary[name] for name in summary.keys() - ONLY_A_MANAGERS.keys()}}
    assert record["metrics"] == {"accuracy": 0.5, "loss": None}


def test_a_run_of_a_manager_that_published_no_counts_is_counted() -> None:
    members = {f"02:00:00:00:00:{number:02x}": {"status": "training"} for number in range(3)}
    members[MAC] = {"status": "lost"}
    record = run_record(run(clients=members))
    assert record["clients_by_status"] == {"training": 2, "lost": 1}
    assert "clients" not in record


def test_a_record_is_plain_json() -> None:
    fleet_view = FleetView()
    record = fleet_view.take(Received(topics.client_status(TASK, MAC), client(1, **BUSY), False), 0.0)
    assert record is not None
    assert {type(value) for value in record["run"].values()} == {str, int}
    assert json.loads(json.dumps(record)) == record


def test_a_heartbeat_in_a_training_is_no_change_and_a_number_is_one() -> None:
    fleet_view, topic = FleetView(), topics.client_status(TASK, MAC)
    numbers = ClientMetrics(
        kind="round", task_id=TASK, client_mac=MAC, instance="i", values={"loss": 0.5}, at=utc_now()
    )
    assert fleet_view.take(Received(topic, client(1, **BUSY), False), 0.0) is not None
    assert fleet_view.take(Received(topic, client(2, **BUSY), False), 5.0) is None
    assert fleet_view.take(Received(topics.client_metrics(TASK, MAC), numbers, False), 6.0) is None
    changed = fleet_view.take(Received(topic, client(3, **BUSY), False), 7.0)
    assert changed is not None
    assert changed["metrics"] == {"loss": 0.5}
    assert fleet_view.take(Received(topic, client(4, **BUSY), False), 8.0) is None
    (view,) = fleet_view.clients()
    assert changed == client_record(fleet_view, view)
