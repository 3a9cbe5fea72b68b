"""FedOps' reports keep their field names; what is no number, no JSON or no address is said or left out."""

import base64
import math
from pathlib import Path

import pytest

from fedops_mqtt.bridge.app import BridgeConfigError, clients_in, gateway_addresses
from fedops_mqtt.bridge.classic import ClassicRun, load_runs
from fedops_mqtt.bridge.peer_registry import ReportError, client_report, parse_report, server_numbers
from fedops_mqtt.bridge.peer_state import FedOpsHttpError, OnlineAnswer
from fedops_mqtt.protocol import MetricsCutter, MetricsKind
from fedops_mqtt.runtime.http_access import credentials_in

MAC = "02:00:00:00:00:01"
CUTTER = MetricsCutter(lambda problem: None)


def test_a_train_result_keeps_its_names_and_loses_its_envelope() -> None:
    fields = parse_report(b'{"fl_task_id": "t", "client_mac": "x", "round": 3, "train_loss": 0.5, "wandb_name": ""}')
    report = client_report(MetricsKind.TRAIN_RESULT, fields | {"nested": {"f1": 1}}, CUTTER)
    assert (report.kind, report.round) == (MetricsKind.TRAIN_RESULT, 3)
    assert report.values == {"train_loss": 0.5, "wandb_name": "", "nested": '{"f1": 1}'}


def test_a_servers_evaluation_is_its_numbers() -> None:
    fields = {"fl_task_id": "t", "round": 2, "gl_loss": 0.25, "gl_model_v": 4, "run_time_by_round": 9.0, "ok": True}
    assert server_numbers(fields | {"source": "server_validation"}, CUTTER) == {"gl_loss": 0.25}


def test_a_kept_run_whose_loss_is_no_number_is_found_again(tmp_path: Path) -> None:
    run = ClassicRun(task_id="t", run_id="r", server_ip="h:1", metrics={"loss": math.nan, "more": math.inf})
    (tmp_path / "bridge").mkdir()
    (tmp_path / "bridge" / "t.run.json").write_text(run.model_dump_json())
    (found,) = load_runs(tmp_path)
    assert (math.isnan(found.metrics["loss"]), found.metrics["more"]) == (True, math.inf)


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"\xff", b"{", b"[" * 200_000])
def test_an_invalid_report_is_an_error(body: bytes) -> None:
    with pytest.raises(ReportError):
        parse_report(body)


@pytest.mark.parametrize("value", [None, "3", True, -1, float("nan"), float("inf"), 1e300, 10**400])
def test_a_report_of_any_values_is_taken(value: object) -> None:
    fields = {"round": value, "x" * 300: value, **{f"m{number}": value for number in range(300)}}
    report = client_report(MetricsKind.TRAIN_RESULT, fields, CUTTER)
    assert (report.round, len(report.values)) == (0, 256)
    assert len(server_numbers(fields, CUTTER)) <= 256


@pytest.mark.parametrize(
    "body",
    [
        b'{"task_id": "t", "client_mac": "02:00:00:00:00:01", "client_online": true, "client_start": false}',
        b'{"FL_task_id": "t", "FL_client_mac": "02-00-00-00-00-01",'
        b' "FL_client_online": true, "FL_client_start": false}',
    ],
    ids=["today", "first"],
)
def test_both_generations_publish_the_same(body: bytes) -> None:
    answer = OnlineAnswer.parse("http://pi", body)
    assert (answer.task_id, answer.client_mac, answer.is_online, answer.is_training) == ("t", MAC, True, False)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"task_id": "a b", "client_mac": "me"}'])
def test_another_programs_answer_is_not_taken_for_a_status(body: bytes) -> None:
    with pytest.raises(FedOpsHttpError, match="something else than a status"):
        OnlineAnswer.parse("http://pi", body)


def test_clients_are_urls_with_a_mac_or_without() -> None:
    assert clients_in(f"http://pi:8003, {MAC}=http://pi:8013") == [(None, "http://pi:8003"), (MAC, "http://pi:8013")]
    assert clients_in("") == []
    for wrong in ("pi:8003", "me=http://pi:8003", "http://", "ftp://pi"):
        with pytest.raises(BridgeConfigError, match="clients"):
            clients_in(wrong)


def test_gateways_have_consecutive_ports_or_any() -> None:
    assert gateway_addresses("10.0.0.1:8080", 2) == ["10.0.0.1:8080", "10.0.0.1:8081"]
    assert gateway_addresses(":0", 2) == ["127.0.0.1:0", "127.0.0.1:0"]
    with pytest.raises(BridgeConfigError, match="grpc_gateways"):
        gateway_addresses("10.0.0.1:65535", 2)


def test_user_and_password_come_from_a_url_or_a_proxys() -> None:
    basic = b"Basic " + base64.b64encode(b"02-00-00-00-00-01:secret")
    for header in (b"authorization", b"proxy-authorization"):
        assert credentials_in({header: basic}) == ("02-00-00-00-00-01", "secret")
    for wrong in (b"", b"Bearer x", b"Basic !!", b"Basic /w=="):
        assert credentials_in({b"authorization": wrong}) == ("", "")
