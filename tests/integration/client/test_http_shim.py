"""FedOps' HTTP face: its field names, and a start that is the same start as the bus's."""

import httpx
import pytest
from client_testbed import PATIENCE_S, SECRET, Operator, RunDaemon, ServeFl

from fedops_mqtt.client.app import FedOpsAttachment
from fedops_mqtt.client.http_shim import ShimAddressError
from fedops_mqtt.device.daemon import Daemon
from fedops_mqtt.protocol import ClientCondition, ClientMetrics, Outcome, Phase

FIRST_NAMES = "FL_task_id FL_client_num FL_client_mac FL_client_online FL_client_start FL_client_fail FL_server_IP"
NAMES = "task_id client_num client_mac client_name client_online client_start client_fail server_IP gl_model"


@pytest.fixture
async def daemon(run_daemon: RunDaemon, operator: Operator) -> Daemon:
    daemon = await run_daemon(http="127.0.0.1:0", client_name="pi")
    await operator.until_condition(ClientCondition.ONLINE)
    assert daemon.http_address is not None
    return daemon


@pytest.fixture
async def http(daemon: Daemon):  # type: ignore[no-untyped-def]
    async with httpx.AsyncClient(
        base_url=f"http://{daemon.http_address}", trust_env=False, timeout=PATIENCE_S
    ) as client:
        yield client


async def test_online_answers_under_both_generations_of_names(http: httpx.AsyncClient, task_id: str, mac: str) -> None:
    answer = await http.get("/online")
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {*FIRST_NAMES.split(), "FL_next_gl_model", *NAMES.split()}
    assert (body["task_id"], body["client_mac"], body["client_name"]) == (task_id, mac, "pi")
    assert (body["client_online"], body["client_start"], body["FL_client_fail"]) == (True, False, False)
    assert (body["server_IP"], body["gl_model"]) == (None, 0)


async def test_a_start_over_http_gives_the_same_result_as_a_trigger(
    http: httpx.AsyncClient, operator: Operator, serve_fl: ServeFl, mac: str
) -> None:
    server_ip = await serve_fl("line", "by-hand", "open", "2")
    answer = await http.post("/start", json={"server_ip": server_ip, "client_mac": mac.upper(), "more": [1]})
    assert answer.status_code == 200
    assert answer.json()["FL_client_start"] is True
    assert answer.json()["server_IP"] == server_ip
    finished = await operator.until_condition(ClientCondition.TRAIN_FINISHED)
    assert finished.last_run is not None
    assert (finished.last_run.run_id, finished.last_run.outcome) == ("by-hand", Outcome.FINISHED)
    over_http = await stages_of_two_rounds(operator, "by-hand")

    await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "2"))
    finished = await operator.until(lambda status: status.last_run is not None and status.last_run.run_id == "r1")
    assert finished.status is ClientCondition.TRAIN_FINISHED
    assert await stages_of_two_rounds(operator, "r1") == over_http


async def stages_of_two_rounds(operator: Operator, run_id: str) -> list[object]:
    """Wait for the last numbers of a run: they are published beside its statuses, in no order."""

    def is_last(said: ClientMetrics) -> bool:
        return (said.run_id, said.round, said.values.get("stage")) == (run_id, 2, "evaluate")

    await operator.until_metrics(is_last)
    return [said.values["stage"] for said in operator.metrics if said.run_id == run_id and "stage" in said.values]


async def test_a_second_start_for_the_same_server_starts_nothing_and_for_another_is_refused(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl, mac: str
) -> None:
    daemon = await run_daemon(http="127.0.0.1:0", app="fl_apps:endless")
    await operator.until_condition(ClientCondition.ONLINE)
    server_ip = await serve_fl("line", "by-hand", "open", "1")
    async with httpx.AsyncClient(base_url=f"http://{daemon.http_address}", trust_env=False, timeout=PATIENCE_S) as http:
        start = {"server_ip": server_ip, "client_mac": mac}
        assert (await http.post("/start", json=start)).status_code == 200
        training = await operator.until(lambda status: status.run is not None and status.run.phase is Phase.TRAINING)
        again = await http.post("/start", json=start)
        assert (again.status_code, again.json()["FL_client_start"]) == (200, True)
        other = await http.post("/start", json=start | {"server_ip": "127.0.0.1:2"})
        assert other.status_code == 409
        assert "busy with run by-hand" in other.json()["detail"]
    assert daemon.client.run is not None
    assert training.run is not None
    assert daemon.client.run.attempt == training.run.attempt


async def test_a_start_for_another_mac_is_a_conflict_with_the_reason(http: httpx.AsyncClient, mac: str) -> None:
    answer = await http.post("/start", json={"server_ip": "127.0.0.1:1", "client_mac": "02:00:00:00:00:99"})
    assert answer.status_code == 409
    assert mac in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{}",
        b"[]",
        b'{"server_ip": "nowhere", "client_mac": "02:00:00:00:00:01"}',
        b'{"server_ip": "127.0.0.1:1", "client_mac": "me"}',
        b'{"server_ip": 1, "client_mac": 2}',
        b'{"server_ip": "127.0.0.1:99999", "client_mac": "02:00:00:00:00:01"}',
        b"\xff\xfe",
        b'{"server_ip": "' + b"a" * 10_000 + b':1", "client_mac": "02:00:00:00:00:01"}',
    ],
)
async def test_a_malformed_start_is_422(http: httpx.AsyncClient, daemon: Daemon, body: bytes) -> None:
    answer = await http.post("/start", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "Traceback" not in answer.text
    assert daemon.client.run is None
    assert (await http.get("/online")).status_code == 200


async def test_a_shim_address_that_is_taken_is_reported(daemon: Daemon) -> None:
    assert daemon.http_address is not None
    settings = daemon.settings.model_copy(update={"http": daemon.http_address, "mac": "02:00:00:00:00:77"})
    with pytest.raises(ShimAddressError, match=f"cannot listen on {daemon.http_address}"):
        await Daemon(settings, attachment=FedOpsAttachment(settings)).run()
