"""The texts of the page, and the data of its charts."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from fedops_mqtt.core.run_member import RunEvent, RunWaits
from fedops_mqtt.dashboard import charts
from fedops_mqtt.dashboard.texts import (
    EVENT_TEXTS,
    Label,
    describe_event,
    duration,
    label_of,
    load_text,
    reason_of,
    row_of,
    short_reason,
    size,
)
from fedops_mqtt.manager.api import models
from fedops_mqtt.manager.api.models import ClientRecord

AT = "2026-11-24T10:15:30+00:00"
NOW = datetime.fromisoformat(AT)
EXAMPLES = json.loads(Path(models.__file__).with_name("examples.json").read_text(encoding="utf-8"))
CLIENT = EXAMPLES["ClientRecord"]


def client(**changes: Any) -> ClientRecord:
    return ClientRecord.model_validate({**CLIENT, **changes})


def failed(reason: str) -> dict[str, Any]:
    return {"run_id": "r", "attempt": 1, "outcome": "failed", "reason": reason}


@pytest.mark.parametrize(
    ("changes", "word", "why"),
    [
        ({}, Label.TRAINING, ""),
        ({"run": None}, Label.ONLINE, ""),
        ({"presence": "out", "reason": "lost"}, Label.OFFLINE, "lost"),
        ({"presence": "unconfirmed", "run": None}, Label.UNCONFIRMED, "retained status only"),
        (
            {"run": None, "last_run": failed("Traceback\n  x\nValueError: bad")},
            Label.ONLINE,
            "ValueError: bad",
        ),
    ],
)
def test_a_clients_condition_is_one_label_and_its_reason(changes: dict[str, Any], word: Label, why: str) -> None:
    assert (label_of(client(**changes)), reason_of(client(**changes))) == (word, why)


def test_an_offline_client_has_no_phase_and_no_load() -> None:
    load = {"cpu": 12.4, "memory": 50.0}
    row = row_of(client(presence="out", reason="lost"), load)
    assert (row["status"], row["phase"], row["round"], row["load"]) == ("Offline", "", None, "")
    row = row_of(client(), load)
    assert (row["phase"], row["load"]) == ("training", "CPU 12 %, mem 50 %")


def test_numbers_are_written_as_people_write_them() -> None:
    assert [size(each) for each in (12, 1500, 2_500_000)] == ["12 B", "1.5 kB", "2.5 MB"]
    assert [duration(each) for each in (0.42, 75, 3700, 90_000)] == ["0.4 s", "1 min 15 s", "1 h 1 min", "1 d 1 h"]
    assert load_text(None) == ""
    assert short_reason("") == ""


def test_an_event_is_a_short_sentence() -> None:
    said = {"kind": "MemberSaid", "detail": {"status": "failed", "reason": "Traceback\nValueError: bad", "attempt": 2}}
    assert describe_event(said) == "now: failed, ValueError: bad, attempt 2"
    assert describe_event({"kind": "ClientChosen", "detail": {}}) == "chosen"


def test_every_event_of_a_runs_history_has_its_text() -> None:
    kinds = {kind for kind in get_args(RunEvent) if kind.__module__ == RunWaits.__module__ and kind is not RunWaits}
    assert {kind.__name__ for kind in kinds} - {*EVENT_TEXTS} == set()


def message(number: int, **seconds: float) -> dict[str, Any]:
    values = {"stage": "train", "compute_s": 0.0, "download_s": 0.0, "upload_s": 0.0, **seconds}
    return {"kind": "round", "round": number, "client_mac": CLIENT["client_mac"], "values": values, "at": NOW}


def test_a_rounds_time_is_split_and_adds_up() -> None:
    rounds = [{"round": 0, "duration_s": None}, {"round": 1, "duration_s": 2.0}]
    spent: charts.Spent = {}
    for seconds in (0.5, 1.5):
        row = message(1, compute_s=seconds, download_s=0.25, upload_s=0.25)
        charts.add_spent(spent, [{**row, "client_mac": f"of {seconds}"}])
    drawn = charts.round_times(rounds, spent)
    assert drawn["xAxis"]["data"] == [1]
    assert {each["name"]: each["data"] for each in drawn["series"]} == {
        "train": [1.0],
        "transfer": [0.5],
        "wait": [0.5],
    }


def test_a_lane_shows_what_a_client_did_and_where_it_failed() -> None:
    mac = CLIENT["client_mac"]
    detail = {"status": "failed", "reason": "disk gone"}
    event = {"at": NOW, "kind": "MemberSaid", "client_mac": mac, "detail": detail}
    phases, marks = charts.lane_data([mac], [message(1, compute_s=1.0, upload_s=0.5)], [event])
    assert [round(bar["value"][2] - bar["value"][1]) for bar in phases] == [500, 1000, 0]
    drawn = charts.lanes(["attic"], phases, marks)
    assert [each["data"] for each in drawn["series"]] == [phases, marks]
    assert drawn["yAxis"]["data"] == ["attic"]
    assert [mark["name"] for mark in marks] == ["failed: disk gone"]


def test_lanes_show_failed_clients_first_and_no_more_than_a_chart_holds() -> None:
    statuses = {f"{number:03}": "training" for number in range(99)} | {"098": "failed", "097": "lost"}
    chosen = charts.choose_lanes(statuses)
    assert chosen[:3] == ["098", "097", "000"]
    assert len(chosen) == charts.MAX_LANES


@pytest.mark.parametrize(
    ("drawn", "wanted", "age_s", "due"),
    [(None, [], 0.0, True), ([], ["a"], 0.1, True), (["a"], ["b", "a"], 0.1, True), ([], [], 99.0, False),
     (["a"], ["b"], 0.1, False), (["a"], ["b"], charts.LANES_S, True), (["b", "a"], ["a"], 0.1, False)],
)  # fmt: skip
def test_a_client_that_fits_gets_its_lane_at_once_and_others_change_seldom(
    drawn: list[str] | None, wanted: list[str], age_s: float, due: bool
) -> None:
    assert charts.are_lanes_due(drawn, wanted, age_s) == due


def test_an_accuracy_is_drawn_from_0_to_1_and_a_percentage_as_it_is() -> None:
    flat = [("accuracy", [[0, 0.98], [1, 0.98]])]
    assert {name: charts.lines(flat, is_share=True)["yAxis"][name] for name in ("min", "max")} == {"min": 0, "max": 1}
    assert "max" not in charts.lines([("accuracy", [[0, 98.0]])], is_share=True)["yAxis"]
    assert "max" not in charts.lines(flat)["yAxis"]


def test_a_single_moment_has_a_minute_around_it() -> None:
    axis = charts.over_time([("CPU", [[AT, 50.0]])])["xAxis"]
    assert axis["max"] - axis["min"] == 60_000
    assert "min" not in charts.over_time([("CPU", [[AT, 50.0], ["2026-11-24T10:15:31+00:00", 60.0]])])["xAxis"]


def test_runs_are_compared_by_one_measure_each_and_keep_their_places() -> None:
    rows = [{"round": 1, "metrics": {"eval_accuracy": 0.4, "accuracy": 0.5}}]
    compared = charts.runs_compared(
        {"digits-20261126-155341-5a76": rows, "digits-20261126-155333-e3e0": []}, "accuracy"
    )
    assert compared == [("5a76", [[1, 0.5]]), ("e3e0", [])]


def test_a_metric_that_diverged_leaves_a_gap() -> None:
    rounds = [{"round": 1, "metrics": {"loss": None, "accuracy": 0.5}}, {"round": 2, "metrics": {"loss": 0.25}}]
    assert charts.by_round(rounds, "loss") == [("loss", [[2, 0.25]])]


@pytest.mark.parametrize("value", ["a lot", None, True, [1], {"x": 1}, 1e308, -5.0])
def test_a_page_draws_the_valid_part_of_rows_with_any_content(value: Any) -> None:
    values = {"stage": value, "compute_s": value, "download_s": value, "upload_s": value, "cpu": value, "memory": value}
    row = {**message(1), "values": values}
    rounds = [{"round": 1, "metrics": {"accuracy": value, "loss": 0.5}, "duration_s": 2.0}]
    spent: charts.Spent = {}
    charts.add_spent(spent, [row, message(1, compute_s=1.0)])
    charts.round_times(rounds, spent)
    bars, _ = charts.lane_data([CLIENT["client_mac"]], [row], [])
    assert len(bars) == 3
    charts.lines(charts.by_round(rounds, "accuracy"), is_share=True)
    assert charts.by_round(rounds, "loss") == [("loss", [[1, 0.5]])]
    load_text(values)


def test_no_text_from_a_device_is_interpreted_on_the_page() -> None:
    evil = "a\x1b[31m\u202eb<img src=x>"
    row = row_of(client(client_name=evil, run=None, last_run=failed(evil), agent={}))
    event = {"kind": "MemberSaid", "detail": {"status": "failed", "reason": evil}}
    rounds = [{"round": 1, "metrics": {evil + "loss": 1.0}, "duration_s": 1.0}]
    for shown in (row["name"], row["reason"], describe_event(event), charts.by_round(rounds, "loss")[0][0]):
        assert "\\x1b[31m\\u202eb" in shown
        assert shown.isprintable()
    options = charts.lanes([], [], [])
    assert "textContent" in options["tooltip"][":formatter"], "a text would be taken for HTML"
