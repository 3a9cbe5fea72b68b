"""One run from its start to its end, over a real line, said on a real bus."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import ArrayRecord, Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.server.strategy import FedAdam as ClassicFedAdam
from flwr.server.strategy import FedAvg as ClassicFedAvg
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from ports import free_port
from server_parts import WAIT_S, House, mac_of

from fedops_mqtt.aggregation.errors import ServerConfigError
from fedops_mqtt.demo import digits
from fedops_mqtt.line.access import make_token
from fedops_mqtt.line.wire import JOIN_PATH
from fedops_mqtt.protocol import MemberCondition, RunOutcome, ServerCondition, ServerMetrics
from fedops_mqtt.server.app import FLServer, RunResult


async def test_a_run_is_published_from_ready_to_finished_and_its_model_is_kept(house: House) -> None:
    async with house.listen() as bus:
        run = house.start(house.make(house.settings(num_rounds=5)))
        address = await bus.ready()
        clients = [house.join(address, number) for number in (0, 1)]
        last = await bus.final()
        result = await run
        rounds = [await bus.round(number) for number in range(6)]
    assert (last.status, last.round, last.num_rounds, last.gl_model) == (ServerCondition.FINISHED, 5, 5, 1)
    assert last.metrics["accuracy"] == result.metrics["accuracy"] >= 0.93
    assert last.model_path == result.model_path == str(house.store / house.task_id / "digits_gl_model_V1.safetensors")
    assert {mac: client.status for mac, client in last.clients.items()} == {
        mac_of(0): MemberCondition.FINISHED,
        mac_of(1): MemberCondition.FINISHED,
    }
    statuses = list(dict.fromkeys(said.status for said in bus.statuses if said.status is not ServerCondition.STARTING))
    assert statuses == [ServerCondition.READY, ServerCondition.RUNNING, ServerCondition.FINISHED]
    assert rounds[0].metrics["accuracy"] < 0.5 < rounds[5].metrics["accuracy"]  # type: ignore[operator]
    assert {"loss", "accuracy", "train_loss", "eval_loss", "eval_accuracy"} <= set(rounds[5].metrics)
    assert all(said.duration_s and said.bytes_in and said.bytes_out for said in rounds[1:])
    assert [(await client.end()).run_outcome for client in clients] == [RunOutcome.COMPLETED] * 2


async def one_run(house: House, version: int) -> tuple[RunResult, ServerMetrics]:
    """A whole run, and what was said before its training; what an earlier run left on the bus is not waited for."""
    async with house.listen() as bus:
        run = house.start(house.make())
        ready = await bus.status(lambda status: status.gl_model == version and status.server_ip is not None)
        for number in (0, 1):
            house.join(str(ready.server_ip), number)
        return await run, await bus.round(0)


async def test_the_next_run_continues_from_the_newest_version(house: House) -> None:
    first, _ = await one_run(house, 1)
    second, before = await one_run(house, 2)
    assert (first.gl_model, second.gl_model) == (1, 2)
    assert before.metrics["accuracy"] == first.metrics["accuracy"]
    assert house.models().versions() == [1, 2]


async def test_a_join_with_a_number_that_no_status_can_carry_is_refused_and_the_run_ends_as_others_do(
    house: House,
) -> None:
    """It was taken once, and the run ended without a final status."""
    huge = b'{"client_mac": "%s", "instance": "i", "attempt": %d}' % (mac_of(9).encode(), 2**63)
    async with house.listen() as bus:
        run = house.start(house.make())
        address = await bus.ready()
        async with httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as http:
            answer = await http.post(f"http://{address}{JOIN_PATH}", content=huge)
            assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
        for number in (0, 1):
            house.join(address, number)
        result, final = await run, await bus.final()
    assert (result.outcome, final.status) == (RunOutcome.COMPLETED, ServerCondition.FINISHED)
    assert set(final.clients) == {mac_of(0), mac_of(1)}


class ClassicDigits(NumPyClient):
    def __init__(self, partition: int) -> None:
        self.digits = digits.load_partition(partition, 2)

    def fit(self, parameters: Any, config: dict[str, Any]) -> Any:
        arrays = dict(zip(digits.initial_arrays(), parameters, strict=True))
        model, loss = digits.train(arrays, self.digits, epochs=3, learning_rate=0.2, seed=1)
        return list(model.values()), len(self.digits), {"loss": loss}

    def evaluate(self, parameters: Any, config: dict[str, Any]) -> Any:
        arrays = dict(zip(digits.initial_arrays(), parameters, strict=True))
        loss, accuracy = digits.evaluate(arrays, self.digits)
        return loss, len(self.digits), {"accuracy": accuracy}


def classic_app() -> ClientApp:
    def client_fn(context: Context) -> Any:
        return ClassicDigits(int(context.node_config["partition-id"])).to_client()

    return ClientApp(client_fn=client_fn)


def weighted(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    return {"accuracy": sum(n * m["accuracy"] for n, m in metrics) / sum(n for n, _ in metrics)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["fedavg", "fedadam"])
async def test_classic_strategies_run_with_numpy_clients(house: House, kind: str) -> None:
    if kind == "fedavg":
        strategy: Any = ClassicFedAvg(evaluate_metrics_aggregation_fn=weighted)
    else:
        from flwr.common import ndarrays_to_parameters

        zeros = [np.zeros_like(array) for array in digits.initial_arrays().values()]
        strategy = ClassicFedAdam(initial_parameters=ndarrays_to_parameters(zeros), eta=0.05)
    async with house.listen() as bus:
        run = house.start(house.make(house.settings(num_rounds=5), strategy=strategy))
        address = await bus.ready()
        for number in (0, 1):
            house.join(address, number, app=classic_app())
        result = await run
        said = await bus.round(5)
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, 5)
    assert result.metrics["accuracy"] > 0.7
    assert said.metrics["eval_loss"] is not None
    assert ("eval_accuracy" in said.metrics) == (kind == "fedavg")
    saved = house.models().newest()
    assert saved is not None
    assert list(saved.arrays) == list(digits.initial_arrays())


async def test_a_server_app_runs_in_place_of_a_strategy(house: House) -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        result = FedAvg().start(
            grid=grid,
            initial_arrays=_record(digits.initial_arrays()),
            num_rounds=int(context.run_config["num-server-rounds"]),
        )
        context.state["arrays"] = result.arrays

    async with house.listen() as bus:
        run = house.start(house.make(server_app=app))
        address = await bus.ready()
        for number in (0, 1):
            house.join(address, number)
        result = await run
        running = await bus.status(lambda status: status.round == 2)
    assert running.status in (ServerCondition.RUNNING, ServerCondition.FINISHED)
    assert result.outcome is RunOutcome.COMPLETED
    assert house.models().versions() == [1]


def _record(arrays: dict[str, Any]) -> ArrayRecord:
    from flwr.app import Array

    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


async def test_an_invited_server_lets_only_tokens_of_its_run_in(house: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("ab" * 32)
    settings = house.settings(run_id="run-7", launch=1, run_secret_file=secret, num_rounds=1, min_clients=1)
    async with house.listen() as bus:
        run = house.start(house.make(settings, strategy=FedAvg(1.0, 1.0, 1, 1, 1)))
        address = await bus.ready(1)
        stranger = house.join(address, 0, token=make_token(b"other", "run-7", mac_of(0)))
        assert (await stranger.end()).is_rejected
        house.join(address, 1, token=make_token(bytes.fromhex("ab" * 32), "run-7", mac_of(1)))
        result = await run
    assert result.outcome is RunOutcome.COMPLETED
    assert list(await _final_clients(bus)) == [mac_of(1)]


async def _final_clients(bus: Any) -> dict[str, Any]:
    return dict((await bus.final()).clients) if bus.connection.is_connected else dict(bus.statuses[-1].clients)


async def test_without_a_broker_the_run_is_done_all_the_same(house: House, caplog: pytest.LogCaptureFixture) -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = house.settings(broker="mqtt://127.0.0.1:1", listen=address, num_rounds=1)
    run = house.start(house.make(settings))
    async with asyncio.timeout(WAIT_S):  # nobody has joined yet, so the run cannot end before the bus has said this
        while "cannot use the broker" not in caplog.text:  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0.02)
    for number in (0, 1):
        house.join(address, number)
    assert (await run).outcome is RunOutcome.COMPLETED
    assert "could not publish how the run ended" in caplog.text


async def test_a_model_of_another_shape_fails_the_run_with_what_to_do(house: House) -> None:
    house.models().save({"0": np.zeros(3)})
    async with house.listen() as bus:
        result = await house.start(house.make())
        last = await bus.final()
    assert (result.outcome, last.status) == (RunOutcome.FAILED, ServerCondition.FAILED)
    assert "give the changed model another model_name" in str(last.reason)
    assert house.models().versions() == [1]


def test_a_server_without_a_task_names_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDOPS_MQTT_TASK_ID", raising=False)
    with pytest.raises(ServerConfigError, match="set FEDOPS_MQTT_TASK_ID, or task_id in cfg"):
        FLServer({}, [np.zeros(1)])
