"""How a run ends before its time, and who is told: stops, replaced servers, failures, limits, the bus's word."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from server_parts import WAIT_S, Bus, Client, Gate, House, gated_app, mac_of

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.demo.client import client_app
from fedops_mqtt.protocol import (
    ClientCondition,
    ClientStatus,
    LastRun,
    MemberCondition,
    Outcome,
    Phase,
    RunOutcome,
    ServerCondition,
    ServerStatus,
    decode,
    topics,
    utc_now,
)


def one_is_enough() -> FedAvg:
    return FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)


async def start_with_two(house: House, bus: Bus, app: ClientApp, **options: Any) -> tuple[Any, list[Client]]:
    server = house.make(house.settings(**options), strategy=one_is_enough())
    run = house.start(server)
    address = await bus.ready(options.get("launch", 0))
    return run, [house.join(address, number, app=app) for number in (0, 1)]


def client_says(house: House, number: int, status: ClientCondition, **facts: Any) -> ClientStatus:
    return ClientStatus(
        instance="daemon", epoch=1, seq=1, at=utc_now(), status=status, task_id=house.task_id,
        client_mac=mac_of(number), **facts,
    )  # fmt: skip


async def publish_client(bus: Bus, status: ClientStatus) -> None:
    await bus.connection.publish(topics.client_status(status.task_id, status.client_mac), status)


async def test_sigterm_stops_the_run_and_keeps_the_last_whole_rounds_model(house: House) -> None:
    gate = Gate()
    async with house.listen() as bus:
        process = house.spawn("fedavg", num_rounds=9)
        address = await bus.ready()
        clients = [house.join(address, number, app=gated_app(gate, from_round=3)) for number in (0, 1)]
        for _ in clients:
            await gate.wait_entered()
        process.signal(signal.SIGTERM)
        last = await bus.final()
        assert await process.wait() == 1
        gate.opened.set()
        ends = [await client.end() for client in clients]
    assert (last.status, last.round) == (ServerCondition.STOPPED, 2)
    assert last.reason == "the FL server was ended by SIGTERM"
    saved = house.models().newest()
    assert saved is not None
    assert (saved.round, last.model_path) == (2, saved.path)
    assert {client.status for client in last.clients.values()} <= {MemberCondition.STOPPED, MemberCondition.TRAINING}
    assert [(end.outcome, end.run_outcome) for end in ends] == [(Outcome.STOPPED, RunOutcome.STOPPED)] * 2


@pytest.mark.long
@pytest.mark.parametrize(("word", "is_kept"), [("failed", True), ("replaced", False)])
async def test_a_server_that_its_manager_ends_makes_no_version_of_a_run_that_failed_or_goes_on(
    house: House, tmp_path: Path, word: str, is_kept: bool
) -> None:
    """Its manager closes a run below its minimum at once, or launches the server again."""
    gate, reason_file = Gate(), tmp_path / "stop-reason"
    reason_file.write_text(f"{word}\n1 of 2 clients left")
    async with house.listen() as bus:
        process = house.spawn("fedavg", num_rounds=9, run_id="r", launch=1, stop_reason_file=reason_file)
        address = await bus.ready(1)
        clients = [house.join(address, number, app=gated_app(gate, from_round=3)) for number in (0, 1)]
        for _ in clients:
            await gate.wait_entered()
        process.signal(signal.SIGTERM)
        assert await process.wait() == 1
        gate.opened.set()
    assert house.models().versions() == []
    folder = house.store / house.task_id
    assert (folder / "digits_gl_model_failed_r.safetensors").exists() == is_kept
    assert (folder / ".checkpoints" / "r.safetensors").exists() != is_kept


@pytest.mark.long
async def test_evaluation_that_never_ends_is_interrupted_by_a_stop(house: House) -> None:
    async with house.listen() as bus:
        process = house.spawn("hang", num_rounds=2, stop_grace_s=0.5)
        address = await bus.ready()
        for number in (0, 1):
            house.join(address, number)
        await bus.status(lambda status: status.round == 1)
        process.signal(signal.SIGTERM)
        last = await bus.final()
        assert await process.wait() == 1
    assert last.status is ServerCondition.STOPPED


def _has_two_in_training(status: ServerStatus) -> bool:
    return [client.phase for client in status.clients.values()] == [Phase.TRAINING] * 2


async def test_a_server_that_sees_a_higher_launch_of_its_run_ends_without_a_final_status(house: House) -> None:
    gate = Gate()
    async with house.listen() as bus:
        run, clients = await start_with_two(house, bus, gated_app(gate), run_id="r-1", launch=1, join="open")
        own = await bus.status(_has_two_in_training)  # the last it has to say before the gate opens
        newer = ServerStatus(
            instance="zzz", epoch=own.epoch + 1000, seq=1, at=utc_now(), status=ServerCondition.READY,
            task_id=house.task_id, run_id="r-1", launch=2, server_ip="127.0.0.1:1",
        )  # fmt: skip
        await bus.connection.publish(topics.server_status(house.task_id), newer)
        result = await run
        async with house.listen() as later:
            retained = await later.status(lambda status: True)
    assert (result.outcome, result.reason) == (RunOutcome.STOPPED, "launch 2 of this run has taken over")
    # A status that was on its way as the newer one came is below it; who owns the topic now repairs that.
    assert retained == newer or (retained.instance == own.instance and not retained.status.is_final)
    assert not any(status.status.is_final for status in bus.statuses)
    assert house.models().versions() == []
    for client in clients:
        client.runner.stop("enough")
    gate.opened.set()
    assert [(await client.end()).run_outcome for client in clients] == [None, None]


async def test_a_daemon_that_reports_failed_takes_its_client_out_and_the_round_goes_on(house: House) -> None:
    gate = Gate()
    async with house.listen() as bus:
        server = house.make(house.settings(run_id="r-2", launch=1, min_clients=1), strategy=one_is_enough())
        run = house.start(server)
        address = await bus.ready(1)
        house.join(address, 0, app=gated_app(gate))
        house.join(address, 1)
        await gate.wait_entered()
        failed = LastRun(run_id="r-2", attempt=1, outcome=Outcome.FAILED, reason="killed by signal 9")
        await publish_client(bus, client_says(house, 0, ClientCondition.TRAIN_FAILED, last_run=failed))
        result = await run
        last = await bus.final(1)
        gate.opened.set()
    assert result.outcome is RunOutcome.COMPLETED
    assert (last.clients[mac_of(0)].status, last.clients[mac_of(0)].reason) == (
        MemberCondition.FAILED,
        "killed by signal 9",
    )
    assert last.clients[mac_of(1)].status is MemberCondition.FINISHED


async def test_a_client_out_and_an_older_attempts_failure_remove_no_member(house: House) -> None:
    gate = Gate()
    async with house.listen() as bus:
        run = house.start(house.make(house.settings(run_id="r-3", launch=1)))
        address = await bus.ready(1)
        clients = [house.join(address, number, app=gated_app(gate), attempt=2) for number in (0, 1)]
        for _ in clients:
            await gate.wait_entered()
        await publish_client(bus, client_says(house, 0, ClientCondition.CLIENT_OUT, reason="lost"))
        older = LastRun(run_id="r-3", attempt=1, outcome=Outcome.FAILED, reason="before")
        await publish_client(bus, client_says(house, 1, ClientCondition.TRAIN_STARTED, last_run=older))
        gate.opened.set()
        result = await run
        last = await bus.final(1)
    assert result.outcome is RunOutcome.COMPLETED
    assert {client.status for client in last.clients.values()} == {MemberCondition.FINISHED}


async def test_too_few_clients_fail_the_run_and_name_the_missing(house: House) -> None:
    gate = Gate()
    async with house.listen() as bus:
        run = house.start(house.make(house.settings(join_limit_s=10.0)))
        address = await bus.ready()
        clients = [house.join(address, number, app=gated_app(gate, from_round=2)) for number in (0, 1)]
        for _ in clients:
            await gate.wait_entered()
        clients[0].runner.stop("battery low")
        gate.opened.set()
        result = await run
        last = await bus.final()
    assert last.status is ServerCondition.FAILED
    assert result.reason == last.reason
    assert "too few clients: 1 after 10 s, 2 needed" in result.reason
    assert f"{mac_of(0)} (battery low)" in result.reason


async def test_a_run_in_which_every_client_raises_is_no_success(house: House) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        raise ZeroDivisionError("no data here")

    async with house.listen() as bus:
        server = house.make(house.settings(num_rounds=1), strategy=FedAvg(fraction_evaluate=0.0))
        run = house.start(server)
        address = await bus.ready()
        for number in (0, 1):
            house.join(address, number, app=app)
        result = await run
    assert result.outcome is RunOutcome.FAILED
    assert "no round gave a model" in result.reason
    assert "ZeroDivisionError: no data here" in result.reason
    assert house.models().versions() == []


async def test_what_the_users_evaluation_raises_is_the_runs_reason(house: House) -> None:
    def evaluate(round_: int, arrays: Any) -> dict[str, float]:
        raise KeyError("accuracy of the moon")

    async with house.listen() as bus:
        result = await house.start(house.make(evaluate_fn=evaluate))
        last = await bus.final()
    assert (result.outcome, last.status) == (RunOutcome.FAILED, ServerCondition.FAILED)
    assert result.reason == last.reason
    said, *traceback = result.reason.splitlines()
    assert said == "KeyError: 'accuracy of the moon'"
    assert any("in evaluate" in line for line in traceback)


async def test_a_broker_that_restarts_in_a_round_costs_the_run_nothing(house: House, broker: Mosquitto) -> None:
    gate = Gate()
    async with house.listen() as bus:
        run, clients = await start_with_two(house, bus, gated_app(gate, from_round=2))
        for _ in clients:
            await gate.wait_entered()
        await broker.restart()
        gate.opened.set()
        result = await run
        last = await bus.final()
    assert (result.outcome, last.status) == (RunOutcome.COMPLETED, ServerCondition.FINISHED)
    assert last.metrics["accuracy"] == result.metrics["accuracy"]


async def test_the_final_status_is_on_disk_before_it_is_published(
    house: House, broker: Mosquitto, tmp_path: Path
) -> None:
    gate, kept = Gate(), tmp_path / "last-word"
    async with house.listen() as bus:
        options = {"run_id": "r-9", "launch": 1, "final_status_file": kept, "join": "open"}
        run, clients = await start_with_two(house, bus, gated_app(gate, from_round=2), **options)
        for _ in clients:
            await gate.wait_entered()
        await broker.terminate()
        gate.opened.set()
        async with asyncio.timeout(WAIT_S):
            while not kept.exists():  # noqa: ASYNC110 - nobody can tell: there is no broker
                await asyncio.sleep(0.02)
        assert not run.done()
        word = decode(topics.server_status(house.task_id), kept.read_bytes())
        await broker.start()
        result = await run
        last = await bus.final(1)
    assert result.outcome is RunOutcome.COMPLETED
    assert isinstance(word, ServerStatus)
    own = {"epoch", "seq", "at"}
    assert word.model_dump(exclude=own) == last.model_dump(exclude=own)


async def test_a_server_that_is_replaced_while_it_publishes_its_final_status_ends_as_it_ended(
    house: House, broker: Mosquitto, tmp_path: Path
) -> None:
    kept = tmp_path / "last-word"
    async with house.listen() as bus, FaultProxy(broker.host, broker.port).running() as proxy:
        proxy.swallows = lambda packet: b'"reason":"all rounds done"' in packet
        options = {"broker": proxy.url, "run_id": "r-10", "launch": 1, "final_status_file": kept, "join": "open"}
        run, _ = await start_with_two(house, bus, client_app, **options)
        async with asyncio.timeout(WAIT_S):
            while not kept.exists():  # noqa: ASYNC110 - the word goes no further than the disk
                await asyncio.sleep(0.02)
        own = bus.statuses[-1]
        newer = own.model_copy(update={"instance": "zzz", "epoch": own.epoch + 1000, "run_id": "r-11"})
        await bus.connection.publish(topics.server_status(house.task_id), newer)
        result = await run
    assert (result.outcome, result.reason) == (RunOutcome.COMPLETED, "all rounds done")


async def test_a_port_that_is_taken_fails_the_run_with_its_reason(house: House) -> None:
    async with house.listen() as bus:
        first = house.start(house.make())
        address = await bus.ready()
        result = await house.start(house.make(house.settings(task_id=f"{house.task_id}-b", listen=address)))
        assert result.outcome is RunOutcome.FAILED
        assert "Address already in use" in result.reason
        assert not first.done()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
async def test_a_server_that_waits_for_clients_can_be_stopped(house: House, number: signal.Signals) -> None:
    async with house.listen() as bus:
        process = house.spawn("fedavg")
        await bus.ready()
        process.signal(number)
        last = await bus.final()
        assert await process.wait() == 1
    assert (last.status, last.reason) == (ServerCondition.STOPPED, f"the FL server was ended by {number.name}")
