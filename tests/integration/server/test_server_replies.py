"""Clients that answer with another model, or with NaN: out as failed with the reason, and the run goes on."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.server.strategy import FedAvg as ClassicFedAvg
from flwr.serverapp.strategy import FedAvg
from server_parts import House, mac_of

from fedops_mqtt.protocol import MemberCondition, Outcome, RunOutcome
from fedops_mqtt.server.app import FLServer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NUM_ROUNDS = 3


def spoiled(weights: list[Any], kind: str) -> list[Any]:
    match kind:
        case "nan":
            return [np.full_like(weights[0], np.nan)]
        case "shape":
            return [weights[0].reshape(2, 1)]
    return [weight + 1 for weight in weights]


class Classic(NumPyClient):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def fit(self, parameters: Any, config: Any) -> Any:
        return spoiled(parameters, self.kind), 1, {}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        return 0.5, 1, {}


def message_app(kind: str) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (array,) = message.content["arrays"].to_numpy_ndarrays()
        arrays = ArrayRecord({"w": ArrayRecord(spoiled([array], kind))["0"]})
        metrics = MetricRecord({"num-examples": 1, **({"loss": 0.5} if kind == "metrics" else {})})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    return app


def classic_app(kind: str) -> ClientApp:
    return ClientApp(client_fn=lambda context: Classic(kind).to_client())


@pytest.mark.parametrize(
    ("strategy", "app", "kind", "said"),
    [
        (FedAvg, message_app, "nan", "array 'w'"),
        (FedAvg, message_app, "shape", "array 'w'"),
        (FedAvg, message_app, "metrics", "'metrics.loss' more"),
        (ClassicFedAvg, classic_app, "nan", "array '0'"),
        (ClassicFedAvg, classic_app, "shape", "array '0'"),
    ],
)
async def test_a_client_that_replies_without_a_model_update_has_failed_and_the_run_goes_on(
    house: House, strategy: Any, app: Any, kind: str, said: str
) -> None:
    settings = house.settings(num_rounds=NUM_ROUNDS, min_clients=3)
    server = FLServer(None, {"w": np.zeros(2, "f4")}, "digits", strategy=strategy(), settings=settings)
    async with house.listen() as bus:
        run = house.start(server)
        address = await bus.ready()
        bad, _, _ = [house.join(address, number, app=app(kind if number == 0 else "")) for number in range(3)]
        end = await bad.end()
        house.join(address, 3, app=app(""))
        result = await run
        final = await bus.final()
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, NUM_ROUNDS)
    saved = house.models().newest()
    assert saved is not None
    assert list(saved.arrays["w"]) == [NUM_ROUNDS, NUM_ROUNDS]
    assert (end.outcome, said in end.reason) == (Outcome.FAILED, True)
    member = final.clients[mac_of(0)]
    assert (member.status, member.reason) == (MemberCondition.FAILED, end.reason)


async def test_a_run_whose_every_client_answers_with_another_shape_fails_and_keeps_no_version(house: House) -> None:
    strategy = FedAvg(fraction_evaluate=0.0)  # which would wait for clients
    settings = house.settings(num_rounds=1)
    server = FLServer(None, {"w": np.zeros(2, "f4")}, "digits", strategy=strategy, settings=settings)
    async with house.listen() as bus:
        run = house.start(server)
        address = await bus.ready()
        for number in (0, 1):
            house.join(address, number, app=message_app("shape"))
        result = await run
    assert result.outcome is RunOutcome.FAILED
    assert mac_of(0) in result.reason
    assert "(2, 1)" in result.reason
    assert house.models().versions() == []
