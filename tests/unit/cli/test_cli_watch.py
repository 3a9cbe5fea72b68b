"""What `watch` knows and draws: applying events, changes worth a line, records, the table."""

import io
import logging
from typing import Any

import pytest
from rich.console import Console

from fedops_mqtt.bus import Cleared, Connected, Disconnected, Received
from fedops_mqtt.bus.fleet_view import FleetView, Record, run_record
from fedops_mqtt.cli.output import as_line, as_text, in_a_cell, pad_lines, print_records, print_records_as_lines
from fedops_mqtt.cli.watch import ChangeLines, draw, sparkline
from fedops_mqtt.core.fencing import LAST_SEQ
from fedops_mqtt.protocol import (
    ClientCondition,
    ClientMetrics,
    ClientStatus,
    Message,
    MetricsKind,
    RunCondition,
    RunStatus,
    ServerMetrics,
    topics,
    utc_now,
)
from fedops_mqtt.runtime.logs import FactsFormatter

TASK, MAC = "digits", "02:00:00:00:00:01"


def client(seq: int, condition: ClientCondition = ClientCondition.ONLINE, **changes: Any) -> ClientStatus:
    fields = {"instance": "i", "epoch": 1, "seq": seq, "at": utc_now(), "task_id": TASK, "client_mac": MAC}
    return ClientStatus(**{**fields, "status": condition, "heartbeat_s": 10, **changes})


def run(seq: int, **changes: Any) -> RunStatus:
    fields = {"instance": "m", "epoch": 1, "seq": seq, "at": utc_now(), "created_at": utc_now(), "task_id": TASK}
    return RunStatus(**{**fields, "run_id": "r1", "status": RunCondition.RUNNING, **changes})


def metrics(round_: int, accuracy: float) -> ServerMetrics:
    return ServerMetrics(
        task_id=TASK, run_id="r1", round=round_, metrics={"loss": 1.0, "accuracy": accuracy}, at=utc_now()
    )


def apply(fleet_view: FleetView, message: Message, *, now: float = 0.0, is_retained: bool = False) -> Record | None:
    return fleet_view.take(Received(topics.manager_status(), message, is_retained), now)


def test_a_heartbeat_is_no_change_and_a_new_status_is() -> None:
    fleet_view = FleetView()
    assert apply(fleet_view, client(1)) is not None
    assert apply(fleet_view, client(2)) is None
    changed = apply(fleet_view, client(3, ClientCondition.TRAIN_STARTED))
    assert changed is not None
    assert changed["status"] == "train-started"


def test_a_late_will_changes_nothing() -> None:
    fleet_view = FleetView()
    apply(fleet_view, client(1, epoch=2))
    assert apply(fleet_view, client(LAST_SEQ, ClientCondition.CLIENT_OUT, reason="lost")) is None
    assert fleet_view.clients()[0].status.status is ClientCondition.ONLINE


def test_a_silent_client_is_reported_once_as_out() -> None:
    fleet_view = FleetView()
    fleet_view.take(Connected("5"), 0.0)
    apply(fleet_view, client(1))
    (out,) = fleet_view.expire(31.0)
    assert (out["presence"], out["reason"]) == ("out", "silent")
    assert fleet_view.expire(32.0) == []


def test_no_client_expires_while_the_watcher_is_disconnected() -> None:
    fleet_view = FleetView()
    fleet_view.take(Connected("5"), 0.0)
    apply(fleet_view, client(1))
    assert fleet_view.take(Disconnected("gone"), 1.0) == {"kind": "bus", "status": "lost", "reason": "gone"}
    assert fleet_view.expire(1000.0) == []


def test_a_cleared_client_is_forgotten() -> None:
    fleet_view = FleetView()
    apply(fleet_view, client(1))
    gone = fleet_view.take(Cleared(topics.client_status(TASK, MAC)), 1.0)
    assert gone == {"kind": "client", "task_id": TASK, "client_mac": MAC, "status": "forgotten"}
    assert list(fleet_view.records()) == []


def test_a_round_that_is_done_again_replaces_what_followed_it() -> None:
    fleet_view = FleetView()
    for round_, accuracy in ((0, 0.1), (1, 0.8), (2, 0.9), (1, 0.7)):
        apply(fleet_view, metrics(round_, accuracy))
    assert [(each.round, each.metrics["accuracy"]) for each in fleet_view.history[TASK, "r1"]] == [(0, 0.1), (1, 0.7)]


def test_the_screen_shows_clients_runs_and_accuracy() -> None:
    fleet_view = FleetView()
    fleet_view.take(Connected("5"), 0.0)
    apply(fleet_view, client(1, client_name="device-1"))
    values = {"train_loss": 0.25, "num-examples": 7}
    numbers = ClientMetrics(
        kind=MetricsKind.ROUND, task_id=TASK, client_mac=MAC, instance="i", values=values, at=utc_now()
    )
    apply(fleet_view, numbers)
    apply(fleet_view, run(1, round=2, num_rounds=5, metrics={"accuracy": 0.875}))
    for round_, accuracy in ((0, 0.0), (1, 0.5), (2, 1.0)):
        apply(fleet_view, metrics(round_, accuracy))
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(draw(fleet_view, now=65.0, height=40))
        shown = console.export_text()
    for expected in ("device-1", "online", "train_loss 0.25", "1:05", "2/5", "0.875", "▁▅█", "connected; no manager"):
        assert expected in shown


def test_a_fleet_larger_than_the_screen_is_cut_with_a_note() -> None:
    fleet_view = FleetView()
    for number in range(100):
        apply(fleet_view, client(1, client_mac=f"02:00:00:00:00:{number:02x}"))
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(draw(fleet_view, now=0.0, height=30))
        shown = console.export_text()
    assert len(shown.splitlines()) <= 30
    assert "and 88 more" in shown


def test_empty_states_show_what_to_do() -> None:
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(draw(FleetView(), now=0.0, height=30))
        shown = console.export_text()
    assert "connecting to the broker" in shown
    assert "fedops-mqtt client" in shown
    assert "fedops-mqtt start" in shown


def test_a_sparkline_stays_within_its_bars() -> None:
    assert sparkline([-1.0, 0.0, 0.5, 1.0, 7.0]) == "▁▁▅██"


def test_a_line_keeps_one_record_on_one_line() -> None:
    line = as_line({"kind": "client", "reason": "ValueError:\n  bad data", "round": 0, "run_id": None, "metrics": {}})
    assert line == 'client reason="ValueError: bad data" round=0'


def test_people_see_what_a_client_does_and_how_its_last_training_ended_on_a_flat_line() -> None:
    fleet_view = FleetView()
    trained = {"run_id": "r0", "attempt": 1, "outcome": "failed", "reason": "ValueError", "reason_code": None}
    trains = {"run_id": "r1", "attempt": 2, "launch": 1, "phase": "training", "round": 3}
    numbers = {"kind": MetricsKind.ROUND, "task_id": TASK, "client_mac": MAC, "instance": "i", "values": {"loss": 0.5}}
    apply(fleet_view, ClientMetrics(**numbers, at=utc_now()))
    facts = {"client_name": "device", "run": trains, "last_run": trained, "gl_model": 4, "agent": {"version": "0.1.0"}}
    apply(fleet_view, client(1, ClientCondition.TRAIN_STARTED, **facts))
    assert list(ChangeLines().of(fleet_view.records())) == [
        f"client task_id={TASK} client_mac={MAC} client_name=device presence=online status=train-started run_id=r1 "
        "phase=training round=3 last_outcome=failed gl_model=4 metrics=loss=0.5"
    ]


def test_people_see_how_many_clients_of_a_run_have_which_status() -> None:
    lines = ChangeLines().of([run_record(run(1, round=1, clients_by_status={"training": 2, "lost": 1}, launch=1))])
    assert list(lines) == [
        f'run run_id=r1 task_id={TASK} status=running round=1 num_rounds=0 gl_model=0 clients="training=2 lost=1"'
    ]


def test_what_people_do_not_see_is_a_change_for_programs_alone() -> None:
    fleet_view, lines = FleetView(), ChangeLines()
    rejected = {"run_id": "r1", "attempt": 1, "launch": 1, "answer": "rejected", "reason": "busy"}
    changes = [
        apply(fleet_view, client(1)),
        apply(fleet_view, client(2, last_trigger=rejected)),
        apply(fleet_view, client(3, last_trigger=rejected)),
        fleet_view.take(Cleared(topics.client_status(TASK, MAC)), 1.0),
        apply(fleet_view, client(4, last_trigger=rejected)),
    ]
    answers = [each and each.get("last_trigger") for each in changes]
    assert answers == [None, {**rejected, "reason_code": None}, None, None, {**rejected, "reason_code": None}]
    online = f"client task_id={TASK} client_mac={MAC} presence=online status=online gl_model=0"
    forgotten = f"client task_id={TASK} client_mac={MAC} status=forgotten"
    assert list(lines.of([each for each in changes if each])) == [online, forgotten, online]


def test_columns_are_aligned_and_nothing_is_cut() -> None:
    assert pad_lines([["a", "bb"], ["a" * 50, "c"]]) == ["a" + " " * 51 + "bb", "a" * 50 + "  c"]
    assert as_text({"accuracy": 0.12345678}) == "accuracy=0.1235"


def test_no_text_from_others_reaches_the_terminal_as_a_control_character(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = "a\x1b]0;owned\x07\x9b31m\rb\u202e"
    fleet_view = FleetView()
    apply(fleet_view, client(1, client_name=evil, reason=evil))
    apply(fleet_view, client(2, ClientCondition.CLIENT_OUT, client_name=evil, reason=evil))
    said = ClientMetrics(
        kind=MetricsKind.ROUND, task_id=TASK, client_mac=MAC, instance="i", values={evil: 1.0}, at=utc_now()
    )
    apply(fleet_view, said)
    apply(fleet_view, run(1, reason=evil))
    apply(fleet_view, ServerMetrics(task_id=TASK, run_id="r1", round=1, metrics={evil: 1e300}, at=utc_now()))
    screen = io.StringIO()
    Console(file=screen, width=200, force_terminal=False).print(draw(fleet_view, now=1.0, height=40))
    print_records(list(fleet_view.records()), ("client_name", "reason", "metrics"), is_json=False)
    print_records_as_lines(fleet_view.records(), is_json=False)
    print(*ChangeLines().of(fleet_view.records()))
    print_records_as_lines(fleet_view.records(), is_json=True)
    record = logging.LogRecord("x", logging.INFO, "f", 1, f"{evil}\nforged line", None, None)
    record.reason = evil
    shown = screen.getvalue() + capsys.readouterr().out + FactsFormatter().format(record)
    assert shown.replace("\n", "").isprintable()
    assert "forged line" in shown
    assert "\nforged" not in shown


def test_accuracies_that_are_none_are_drawn_too() -> None:
    assert len(sparkline([1e308, -1e308, 0.5])) == 3


def test_a_cell_of_a_table_has_the_first_line_of_a_reason() -> None:
    assert in_a_cell("KeyError: 'x'\n  File a\n") == "KeyError: 'x' …"
    assert in_a_cell("KeyError: 'x'\n") == "KeyError: 'x'"
    assert in_a_cell(None) == "-"
