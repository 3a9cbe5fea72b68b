"""The daemon on a real bus, with real training processes and FL servers."""

import asyncio
import itertools
from contextlib import suppress
from pathlib import Path

import aiomqtt
import pytest
from client_testbed import HERE, SECRET, Operator, RunDaemon, ServeFl, fl_process, fl_server

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.client.app import FLClientTask
from fedops_mqtt.client.client_api import ClientManagerAPI, ClientServerAPI
from fedops_mqtt.device.daemon import Daemon
from fedops_mqtt.device.journal import DaemonRunningError, identity_dir
from fedops_mqtt.protocol import Answer, ClientCondition, ClientStatus, Outcome, Phase, ReasonCode, topics
from fedops_mqtt.runtime.background import alongside


async def test_a_trigger_leads_to_training_and_its_end_is_published(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    await run_daemon(client_name="pi", heartbeat_s=120)
    birth = await operator.until_condition(ClientCondition.ONLINE)
    assert (birth.client_name, birth.run, birth.last_run, birth.heartbeat_s) == ("pi", None, None, 120)
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "3")
    await operator.trigger(server_ip, gl_model=7)
    started = await operator.until_condition(ClientCondition.TRAIN_STARTED)
    assert started.last_trigger is not None
    assert started.last_trigger.answer is Answer.ACCEPTED
    assert started.run is not None
    assert (started.run.run_id, started.server_ip, started.gl_model) == ("r1", server_ip, 7)
    finished = await operator.until_condition(ClientCondition.TRAIN_FINISHED)
    assert finished.run is None
    assert finished.last_run is not None
    assert (finished.last_run.outcome, finished.last_run.attempt) == (Outcome.FINISHED, 1)
    assert finished.instance == birth.instance
    await operator.until_metrics(lambda said: said.round == 3 and said.values.get("stage") == "train")
    rounds = [metrics.round for metrics in operator.metrics if metrics.values.get("stage") == "train"]
    assert rounds == [1, 2, 3]


async def test_a_second_run_on_the_same_daemon(run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl) -> None:
    await run_daemon()
    await operator.until_condition(ClientCondition.ONLINE)
    for run_id in ("r1", "r2"):
        await operator.trigger(await serve_fl("line", run_id, SECRET.hex(), "1"), run_id=run_id)
        await operator.until(lambda status, run_id=run_id: _has_finished(status, run_id))


def _answered(status: ClientStatus) -> str | None:
    return status.last_trigger.run_id if status.last_trigger else None


def _has_finished(status: ClientStatus, run_id: str) -> bool:
    last = status.last_run
    return last is not None and last.run_id == run_id and last.outcome is Outcome.FINISHED


async def test_training_that_raises_is_failed_with_its_text_and_the_daemon_lives_on(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    await run_daemon(app="fl_apps:raising")
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "1"))
    failed = await operator.until_condition(ClientCondition.TRAIN_FAILED)
    assert "boom in training" in (failed.reason or "")
    assert failed.last_run is not None
    assert failed.last_run.outcome is Outcome.FAILED
    await operator.trigger(await serve_fl("line", "r2", SECRET.hex(), "1"), run_id="r2")
    await operator.until_condition(ClientCondition.TRAIN_STARTED)


async def test_a_duplicate_gets_the_same_answer_and_another_run_is_refused_while_busy(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    await run_daemon(app="fl_apps:endless")
    await operator.until_condition(ClientCondition.ONLINE)
    server_ip = await serve_fl("line", "r1", SECRET.hex(), "1")
    await operator.trigger(server_ip)
    await operator.until(lambda status: status.run is not None and status.run.phase is Phase.TRAINING)
    await operator.trigger(server_ip)
    again = await operator.until(lambda status: status.last_trigger is not None)
    assert again.last_trigger is not None
    assert again.last_trigger.answer is Answer.ACCEPTED
    await operator.trigger(server_ip, run_id="r2")
    refused = await operator.until(lambda status: _answered(status) == "r2")
    assert refused.last_trigger is not None
    assert refused.last_trigger.answer is Answer.REJECTED
    assert "busy with run r1" in (refused.last_trigger.reason or "")
    assert refused.run is not None
    assert refused.run.run_id == "r1"


async def test_a_stop_ends_the_training_at_once_and_publishes_stopped(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    await run_daemon(app="fl_apps:endless")
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "1"))
    await operator.until(lambda status: status.run is not None and status.run.phase is Phase.TRAINING)
    await operator.stop(reason="by hand")
    stopped = await operator.until_condition(ClientCondition.TRAIN_FAILED, reason="stopped")
    assert stopped.last_run is not None
    assert (stopped.last_run.outcome, stopped.last_run.reason) == (Outcome.STOPPED, "by hand")


async def test_a_stop_that_comes_first_prevents_its_start(run_daemon: RunDaemon, operator: Operator) -> None:
    daemon = await run_daemon()
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.stop()
    await operator.until_condition(ClientCondition.ONLINE)
    assert daemon.client.facts.stop_records
    await operator.trigger("127.0.0.1:1")
    refused = await operator.until(lambda status: status.last_trigger is not None)
    assert refused.last_trigger is not None
    assert (refused.last_trigger.answer, refused.last_trigger.reason) == (Answer.REJECTED, "stopped")


@pytest.mark.long
async def test_a_higher_launch_re_aims_the_training_that_runs(run_daemon: RunDaemon, operator: Operator) -> None:
    await run_daemon(app="fl_apps:busy")
    await operator.until_condition(ClientCondition.ONLINE)
    async with fl_process("line", "r1", SECRET.hex(), "50") as first:
        await operator.trigger(first)
        await operator.until(lambda status: status.run is not None and status.run.phase is Phase.TRAINING)
    async with fl_server("line", "r1", SECRET.hex(), "2", "2") as second:
        await operator.trigger(second, launch=2)
        aimed = await operator.until(lambda status: status.run is not None and status.run.launch == 2)
        assert (aimed.server_ip, aimed.status) == (second, ClientCondition.TRAIN_STARTED)
        finished = await operator.until(lambda status: status.last_run is not None)
    assert finished.status is ClientCondition.TRAIN_FINISHED, finished.reason
    assert finished.last_run is not None
    assert finished.last_run.attempt == 1
    statuses = [status.status for status in operator.statuses]
    assert ClientCondition.TRAIN_FAILED not in statuses


async def test_the_apis_of_fedops_publish_on_the_bus(
    broker: Mosquitto, operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    fields = {"broker": broker.url, "mac": operator.mac, "app": "fl_apps:endless", "state_dir": tmp_path}
    task = FLClientTask({"task_id": operator.task_id}, **fields)
    server, manager = ClientServerAPI(operator.task_id), ClientManagerAPI()
    async with alongside(task.fl_client_start(), name="client"):
        await operator.until_condition(ClientCondition.ONLINE)
        assert (server.get_port(), manager.get_info().json()) == (None, {"GL_Model_V": 0})
        for run_id, end, condition in (
            ("r1", server.get_train_fail, ClientCondition.TRAIN_FAILED),
            ("r2", server.get_train_fin, ClientCondition.TRAIN_FINISHED),
            ("r3", manager.get_train_fail, ClientCondition.TRAIN_FAILED),
        ):
            await operator.trigger("127.0.0.1:1", run_id=run_id, gl_model=3)
            await operator.until(lambda status: status.run is not None)
            assert (server.get_port(), manager.get_info().json()) == ("127.0.0.1:1", {"GL_Model_V": 3})
            end()
            ended = await operator.until_condition(condition)
            assert ended.last_run is not None
            assert ended.last_run.run_id == run_id
            end()  # nothing trains any more: nothing is said
        server.get_client_out()
        await operator.until_condition(ClientCondition.CLIENT_OUT, reason="shutdown")


async def test_a_start_that_cannot_be_written_down_is_refused(
    run_daemon: RunDaemon, operator: Operator, tmp_path: Path
) -> None:
    daemon = await run_daemon()
    await operator.until_condition(ClientCondition.ONLINE)
    journal = identity_dir(tmp_path, operator.task_id, operator.mac) / "journal.json"
    journal.unlink()
    (journal / "in the way").mkdir(parents=True)  # nothing can replace a folder that is not empty
    await operator.trigger("127.0.0.1:1")
    refused = await operator.until(lambda status: status.last_trigger is not None)
    assert refused.last_trigger is not None
    assert refused.last_trigger.answer is Answer.REJECTED
    assert "journal cannot be written" in (refused.last_trigger.reason or "")
    assert daemon.client.run is None


async def test_leaving_while_training_publishes_interrupted_and_client_out(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    daemon = await run_daemon(app="fl_apps:endless")
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "1"))
    await operator.until(lambda status: status.run is not None and status.run.phase is Phase.TRAINING)
    daemon.leave()
    out = await operator.until_condition(ClientCondition.CLIENT_OUT, reason="shutdown")
    assert out.last_run is not None
    assert (out.last_run.outcome, out.last_run.reason_code) == (Outcome.FAILED, ReasonCode.INTERRUPTED)
    assert out.run is None


@pytest.mark.long
async def test_a_server_that_never_answers_is_a_failure_and_harms_no_other(
    run_daemon: RunDaemon, operator: Operator
) -> None:
    await run_daemon(join_limit_s=1)
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.trigger("127.0.0.1:1")
    failed = await operator.until_condition(ClientCondition.TRAIN_FAILED)
    assert "127.0.0.1:1" in (failed.reason or "")


async def test_an_app_that_cannot_be_imported_is_a_failure_that_names_it(
    run_daemon: RunDaemon, operator: Operator
) -> None:
    await run_daemon(app="no_such_module:app")
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.trigger("127.0.0.1:1")
    failed = await operator.until_condition(ClientCondition.TRAIN_FAILED)
    assert "no module named 'no_such_module'" in (failed.reason or "")


async def test_a_run_that_is_over_is_a_rejection_and_no_failure(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl
) -> None:
    await run_daemon()
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "1"), token="0" * 64)
    rejected = await operator.until(
        lambda status: status.last_trigger is not None and status.last_trigger.answer is Answer.REJECTED
    )
    assert (rejected.status, rejected.last_run, rejected.run) == (ClientCondition.ONLINE, None, None)


async def test_training_goes_on_without_a_broker_and_its_end_is_published_later(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl, broker: Mosquitto
) -> None:
    await run_daemon(app="fl_apps:busy", backoff_initial_s=0.1, backoff_max_s=0.2)
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "2"))
    await operator.until(lambda status: status.run is not None and status.run.phase is Phase.TRAINING)
    await broker.restart()
    finished = await operator.until_condition(ClientCondition.TRAIN_FINISHED)
    assert finished.last_run is not None
    assert finished.last_run.outcome is Outcome.FINISHED


@pytest.mark.long
async def test_the_users_own_coroutine_goes_on_while_training_runs_flat_out(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = tmp_path / "beats"
    monkeypatch.setenv("TEST_BEATS", str(beats))  # the training ends when it has seen enough of them, and not before

    async def collect() -> None:
        for number in itertools.count():
            beats.write_text(str(number))
            await asyncio.sleep(0.05)

    await run_daemon(app="fl_apps:busy")
    await operator.until_condition(ClientCondition.ONLINE)
    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(collect(), name="collect")
        await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "1"))
        await operator.until_condition(ClientCondition.TRAIN_FINISHED)
        collecting.cancel()


async def test_a_second_daemon_of_the_same_identity_gets_the_process_id_of_the_first(
    run_daemon: RunDaemon, operator: Operator
) -> None:
    daemon = await run_daemon()
    await operator.until_condition(ClientCondition.ONLINE)
    second = Daemon(daemon.settings)
    with pytest.raises(DaemonRunningError, match="already serves task"):
        await second.run()


@pytest.mark.parametrize(
    "payload",
    [
        b"not json",
        b'{"run_id": 1}',
        b"x" * 10_000_000,
        b'{"run_id":"r1","attempt":1,"launch":1,"term":1,"task_id":"TASK","client_mac":"02:00:00:00:00:99",'
        b'"server_ip":"127.0.0.1:1","at":"2026-01-01T00:00:00Z"}',
        b'{"run_id":"r1","attempt":1,"launch":1,"term":1,"task_id":"TASK","client_mac":"02:00:00:00:00:01",'
        b'"server_ip":"127.0.0.1:1","transport":"pigeon","at":"2026-01-01T00:00:00Z"}',
    ],
    ids=["not json", "wrong type", "10 MB", "another mac", "unknown transport"],
)
async def test_a_bad_trigger_is_dropped_and_the_next_is_accepted(
    run_daemon: RunDaemon, operator: Operator, broker: Mosquitto, payload: bytes
) -> None:
    daemon = await run_daemon(join_limit_s=1)
    await operator.until_condition(ClientCondition.ONLINE)
    topic = str(topics.client_start(operator.task_id, operator.mac))
    await publish_raw(broker, topic, payload.replace(b"TASK", operator.task_id.encode()))
    await operator.trigger("127.0.0.1:1", run_id="good")
    answered = await operator.until(lambda status: status.last_trigger is not None)
    assert _answered(answered) == "good"
    assert {answer.run_id for answer in daemon.client.facts.answers} == {"good"}


async def test_a_retained_trigger_is_ignored(run_daemon: RunDaemon, operator: Operator, broker: Mosquitto) -> None:
    topic = str(topics.client_start(operator.task_id, operator.mac))
    stale = (
        f'{{"run_id":"stale","attempt":1,"launch":1,"term":1,"task_id":"{operator.task_id}",'
        f'"client_mac":"{operator.mac}","server_ip":"127.0.0.1:1","at":"2026-01-01T00:00:00Z"}}'
    )
    await publish_raw(broker, topic, stale.encode(), is_retained=True)
    await run_daemon(join_limit_s=1)
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.trigger("127.0.0.1:1", run_id="good")
    answered = await operator.until(lambda status: status.last_trigger is not None)
    assert _answered(answered) == "good"


async def publish_raw(broker: Mosquitto, topic: str, payload: bytes, *, is_retained: bool = False) -> None:
    """Publish bytes that our own code would not send; a broker that limits their size throws us out instead."""
    with suppress(aiomqtt.MqttError):
        async with aiomqtt.Client(broker.host, broker.port) as raw:
            await raw.publish(topic, payload, qos=1, retain=is_retained)


@pytest.mark.long
async def test_a_clients_numbers_wait_for_a_broker_that_is_away(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl, broker: Mosquitto
) -> None:
    await run_daemon(app="fl_apps:busy", backoff_initial_s=0.1, backoff_max_s=0.2)
    await operator.until_condition(ClientCondition.ONLINE)
    await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "2"))
    await operator.until(lambda status: status.run is not None and status.run.phase is Phase.TRAINING)
    await broker.restart()
    await operator.until(lambda status: _has_finished(status, "r1"))
    await operator.until_metrics(lambda said: said.run_id == "r1")
