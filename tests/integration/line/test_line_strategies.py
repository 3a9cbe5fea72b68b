"""Flower's own strategies, apps and mods over the line, unchanged: both families."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, fixedclipping_mod
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig
from flwr.server.compat import start_grid
from flwr.server.strategy import FedAdam as ClassicFedAdam
from flwr.server.strategy import FedAvg as ClassicFedAvg
from flwr.server.strategy import FedProx as ClassicFedProx
from flwr.server.strategy import FedTrimmedAvg
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    FedYogi,
    Krum,
)
from line_parts import WAIT_S, Lines, echo_app, mac_of

from fedops_mqtt.line.classic import start_classic
from fedops_mqtt.line.grid import BelowQuorumError
from fedops_mqtt.line.identity import node_id_of
from fedops_mqtt.line.runner import Joined, make_context
from fedops_mqtt.line.wire import LineCompression

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

START = [np.zeros((4, 3), "f4"), np.ones(3, "f8")]
NUM_CLIENTS = 3


def add_one_app(mods: list[Any] | None = None) -> ClientApp:
    app = ClientApp()

    @app.train(mods=mods)
    def train(message: Message, context: Context) -> Message:
        arrays = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
        metrics = MetricRecord({"num-examples": 2, "train_loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        mean = float(message.content["arrays"].to_numpy_ndarrays()[0].mean())
        metrics = MetricRecord({"num-examples": 2, "mean": mean})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class AddOne(NumPyClient):
    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        return [array + 1 for array in parameters], 2, {"loss": 0.25}

    def evaluate(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        return float(parameters[0].mean()), 2, {"accuracy": 0.75}


def classic_app() -> ClientApp:
    return ClientApp(client_fn=lambda context: AddOne().to_client())


@pytest.fixture
def join_all(lines: Lines) -> Callable[..., Any]:
    def join(app: ClientApp, num_clients: int = NUM_CLIENTS, **options: Any) -> Any:
        server = lines.serve(min_clients=num_clients, **options)
        clients = [lines.join(server, app, mac=mac_of(number)) for number in range(1, num_clients + 1)]
        return server, clients

    return join


def test_fedavg_runs_its_rounds_with_evaluation_on_both_sides(join_all: Callable[..., Any]) -> None:
    server, clients = join_all(add_one_app())
    seen: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(server_round)
        return MetricRecord({"first": float(arrays.to_numpy_ndarrays()[0][0, 0])})

    result = FedAvg(min_available_nodes=3).start(
        grid=server.grid, initial_arrays=ArrayRecord(START), num_rounds=3, evaluate_fn=evaluate
    )
    np.testing.assert_array_equal(result.arrays.to_numpy_ndarrays()[0], START[0] + 3)
    assert seen == [0, 1, 2, 3]
    assert [dict(m) for m in result.evaluate_metrics_serverapp.values()] == [{"first": x} for x in (0.0, 1.0, 2.0, 3.0)]
    assert result.evaluate_metrics_clientapp[3]["mean"] == 3.0
    answered = clients[0].answered
    assert [(a.kind, a.round) for a in answered] == [(k, r) for r in (1, 2, 3) for k in ("train", "evaluate")]
    assert answered[0].metrics == {"num-examples": 2.0, "train_loss": 0.5}


@pytest.mark.parametrize("strategy", [FedProx(proximal_mu=0.1), FedAdam(), FedYogi(), FedMedian()], ids=type)
def test_message_strategies_run(join_all: Callable[..., Any], strategy: FedAvg) -> None:
    server, _ = join_all(add_one_app())
    result = strategy.start(grid=server.grid, initial_arrays=ArrayRecord(START), num_rounds=2)
    assert result.arrays.to_numpy_ndarrays()[0].shape == (4, 3)
    assert set(result.train_metrics_clientapp) == {1, 2}


def test_krum_runs(join_all: Callable[..., Any]) -> None:
    server, _ = join_all(add_one_app(), 5)
    strategy = Krum(num_malicious_nodes=1, min_available_nodes=5)
    result = strategy.start(grid=server.grid, initial_arrays=ArrayRecord(START), num_rounds=1)
    np.testing.assert_array_equal(result.arrays.to_numpy_ndarrays()[0], START[0] + 1)


@pytest.mark.parametrize(
    "strategy",
    [
        ClassicFedAvg(initial_parameters=ndarrays_to_parameters(START)),
        ClassicFedProx(proximal_mu=0.1, initial_parameters=ndarrays_to_parameters(START)),
        ClassicFedAdam(initial_parameters=ndarrays_to_parameters(START)),
        FedTrimmedAvg(initial_parameters=ndarrays_to_parameters(START)),
    ],
    ids=type,
)
def test_classic_strategies_run_with_numpy_clients(join_all: Callable[..., Any], strategy: ClassicFedAvg) -> None:
    server, clients = join_all(classic_app())
    history = start_classic(grid=server.grid, strategy=strategy, num_rounds=2)
    assert [number for number, _ in history.losses_distributed] == [1, 2]
    assert [(a.kind, a.round) for a in clients[0].answered] == [(k, r) for r in (1, 2) for k in ("train", "evaluate")]
    assert clients[0].answered[0].metrics["loss"] == 0.25


class Watched(ClassicFedAvg):
    """Keeps what its clients answered to fit: cids in order, and failures."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.cids, self.failures = [client.cid for client, _ in results], failures
        return super().aggregate_fit(server_round, results, failures)

    def configure_fit(self, *args: Any, **kwargs: Any) -> Any:
        asked = super().configure_fit(*args, **kwargs)
        self.asked = [client.cid for client, _ in asked]
        return asked


def test_a_classic_round_has_answers_in_the_order_asked_and_each_failure(join_all: Callable[..., Any]) -> None:
    bad = node_id_of(mac_of(1))

    def refuse(message: Message, context: Context, call_next: Any) -> Message:
        if context.node_id == bad and message.metadata.message_type == "train":
            return Message(Error(99, "no data today"), reply_to=message)
        return call_next(message, context)

    server, _ = join_all(ClientApp(client_fn=lambda context: AddOne().to_client(), mods=[refuse]), 4)
    strategy = Watched(initial_parameters=ndarrays_to_parameters(START))
    start_classic(grid=server.grid, strategy=strategy, num_rounds=1)
    assert strategy.cids == [cid for cid in strategy.asked if cid != str(bad)]
    assert [str(failure) for failure in strategy.failures] == ["no data today"]


def test_a_client_that_does_not_answer_within_the_strategys_timeout_is_a_failure(join_all: Callable[..., Any]) -> None:
    release = threading.Event()

    class Hangs(AddOne):
        def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
            release.wait(WAIT_S)
            return super().fit(parameters, config)

    slow = node_id_of(mac_of(1))
    server, _ = join_all(ClientApp(client_fn=lambda c: (Hangs if c.node_id == slow else AddOne)().to_client()), 3)
    strategy = Watched(initial_parameters=ndarrays_to_parameters(START), fraction_evaluate=0.0)
    try:
        start_classic(grid=server.grid, strategy=strategy, num_rounds=1, round_timeout_s=5.0)
    finally:
        release.set()
    assert len(strategy.cids) == 2
    assert [str(failure) for failure in strategy.failures] == ["no reply within the strategy's timeout"]


def test_plain_start_grid_runs_too(join_all: Callable[..., Any]) -> None:
    server, _ = join_all(classic_app())
    strategy = ClassicFedAvg(min_available_clients=3)

    class Start(AddOne):
        def get_parameters(self, config: dict[str, Any]) -> list[np.ndarray]:
            return START

    strategy.initial_parameters = ndarrays_to_parameters(START)
    history = start_grid(grid=server.grid, config=ServerConfig(num_rounds=2), strategy=strategy)
    assert len(history.losses_distributed) == 2


def test_initial_parameters_may_come_from_a_client(join_all: Callable[..., Any]) -> None:
    class Start(AddOne):
        def get_parameters(self, config: dict[str, Any]) -> list[np.ndarray]:
            return START

    server, _ = join_all(ClientApp(client_fn=lambda context: Start().to_client()), 2)
    history = start_classic(grid=server.grid, strategy=ClassicFedAvg(), num_rounds=1)
    assert history.losses_distributed == [(1, 1.0)]


def test_a_classic_strategy_that_needs_more_clients_ends_too(join_all: Callable[..., Any]) -> None:
    server, _ = join_all(classic_app(), 1, limits={"join_s": 5.0})
    parameters = ndarrays_to_parameters(START)
    with pytest.raises(BelowQuorumError, match="2 needed"):
        start_classic(grid=server.grid, strategy=ClassicFedAvg(initial_parameters=parameters), num_rounds=1)


def test_mods_run(join_all: Callable[..., Any]) -> None:
    server, _ = join_all(add_one_app(mods=[fixedclipping_mod, arrays_size_mod]))
    strategy = DifferentialPrivacyClientSideFixedClipping(
        FedAvg(), noise_multiplier=0.0, clipping_norm=0.5, num_sampled_clients=3
    )
    result = strategy.start(grid=server.grid, initial_arrays=ArrayRecord(START), num_rounds=1)
    moved = [a.ravel() - b.ravel() for a, b in zip(result.arrays.to_numpy_ndarrays(), START, strict=True)]
    assert np.linalg.norm(np.concatenate(moved)) == pytest.approx(0.5, rel=1e-3)


def test_a_mod_that_answers_with_an_error_fails_its_message_and_not_its_client(lines: Lines) -> None:
    server = lines.serve()
    client = lines.join(server, add_one_app(mods=[fixedclipping_mod]))
    for _ in range(2):
        (node,) = server.grid.get_node_ids()
        content = RecordDict({"arrays": ArrayRecord(START), "config": ConfigRecord()})
        (reply,) = server.grid.send_and_receive([Message(content, node, "train")])
        assert "clipping_norm" in reply.error.reason
    assert not client.ended.is_set()


def test_state_lives_through_the_run_and_node_config_is_the_callers(lines: Lines) -> None:
    app = ClientApp()

    @app.train("mine")
    def train(message: Message, context: Context) -> Message:
        count = context.state["n"]["n"] + 1 if "n" in context.state else 1  # type: ignore[index,operator]
        context.state["n"] = MetricRecord({"n": count})
        context.state["config"] = ConfigRecord({"x": "kept"})
        metrics = MetricRecord({"n": count, "partition": int(context.node_config["partition-id"])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def context(joined: Joined) -> Context:
        return make_context(joined, node_config={"partition-id": 4})

    server = lines.serve()
    lines.join(server, app, context=context)
    (node,) = server.grid.get_node_ids()
    for count in (1, 2, 3):
        (reply,) = server.grid.send_and_receive([Message(RecordDict(), node, "train.mine")])
        assert dict(reply.content["metrics"]) == {"n": count, "partition": 4}


def test_compression_shrinks_what_can_be_shrunk_in_both_directions(lines: Lines) -> None:
    server = lines.serve(compression=LineCompression(level=1, threshold_bytes=1000))
    lines.join(server, echo_app())
    (node,) = server.grid.get_node_ids()
    arrays = ArrayRecord([np.zeros(100_000)])
    (reply,) = server.grid.send_and_receive([Message(RecordDict({"arrays": arrays}), node, "train")])
    assert reply.content["arrays"] == arrays
    assert 0 < server.bytes_in < 10_000
    assert 0 < server.bytes_out < 10_000


def test_rounds_are_reported_as_they_go_out(lines: Lines) -> None:
    rounds: list[int] = []
    server = lines.serve(on_round=rounds.append)
    lines.join(server, add_one_app())
    strategy = FedAvg(min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1)
    strategy.start(grid=server.grid, initial_arrays=ArrayRecord(START), num_rounds=2)
    assert rounds == [1, 2]
    assert next(iter(server.members.values())).round == 2
