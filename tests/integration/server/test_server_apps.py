"""What came of a run is told as it was, whatever shape the ServerApp, the strategy or a client's answers have."""

import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server import strategy as classic
from flwr.server.compat import start_grid
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedXgbBagging, Result
from line_parts import ThreadClient
from strategy_parts import NUM_CLIENTS, KilledError, Task

from fedops_mqtt.line.client_session import RunEnd
from fedops_mqtt.protocol import Outcome, Phase, RunOutcome

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

START = [np.zeros(2)]
NUM_ROUNDS = 3


def add_one(
    *,
    on_train: Callable[[Message], None] = lambda message: None,
    on_evaluate: Callable[[Message], None] = lambda message: None,
    step: float = 1.0,
    mods: list[Any] | None = None,
) -> ClientApp:
    app = ClientApp()

    @app.train(mods=mods)
    def train(message: Message, context: Context) -> Message:
        on_train(message)
        arrays = [array + step for array in message.content["arrays"].to_numpy_ndarrays()]
        metrics = MetricRecord({"num-examples": 1, "train_loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    @app.evaluate(mods=mods)
    def evaluate(message: Message, context: Context) -> Message:
        on_evaluate(message)
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "eval_loss": 0.25})}), reply_to=message)

    return app


def fail(message: Message) -> None:
    raise ValueError("no data here")


def server_app(main: Callable[[Grid, Context], None]) -> ServerApp:
    app = ServerApp()
    app.main()(main)
    return app


def run_app(task: Task, main: Callable[[Grid, Context], None], app: ClientApp | None = None, **options: Any) -> Any:
    settings = {"num_rounds": NUM_ROUNDS, **options}
    return task.run(app or add_one(), server_app=server_app(main), settings=settings)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path)


class OwnLoop(FedAvg):
    """A `start` of its own, as Flower's example advanced-pytorch has it; `evaluate_fn` may be given or not."""

    def start(  # type: ignore[override]
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> Result:
        arrays, result = initial_arrays, Result()
        for round_ in range(1, num_rounds + 1):
            sent = self.configure_train(round_, arrays, train_config or ConfigRecord(), grid)
            made, metrics = self.aggregate_train(round_, grid.send_and_receive(sent, timeout=timeout))
            if made is not None:
                result.arrays = arrays = made
            if metrics is not None:
                result.train_metrics_clientapp[round_] = metrics
            sent = self.configure_evaluate(round_, arrays, evaluate_config or ConfigRecord(), grid)
            self.aggregate_evaluate(round_, grid.send_and_receive(sent, timeout=timeout))
            if evaluate_fn:
                result.evaluate_metrics_serverapp[round_] = evaluate_fn(round_, arrays)
                assert result.evaluate_metrics_serverapp[round_]["mean"] >= 0
        return result


class Extended(FedAvg):
    """A `start` that does something first, and takes anything."""

    def start(self, *args: Any, **kwargs: Any) -> Result:
        io.StringIO("prepared")
        return super().start(*args, **kwargs)


def mean_of(round_: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"mean": float(arrays.to_numpy_ndarrays()[0].mean()), "round": round_})


@pytest.mark.parametrize("kind", [OwnLoop, Extended, FedAvg])
@pytest.mark.parametrize("evaluate_fn", [None, mean_of])
@pytest.mark.parametrize("is_defined_inside", [False, True])
def test_a_strategy_that_overrides_start_is_followed(
    task: Task, kind: type[FedAvg], evaluate_fn: Any, is_defined_inside: bool
) -> None:
    def main(grid: Grid, context: Context) -> None:
        strategy: FedAvg = kind()
        if is_defined_inside:
            made = type("Inside", (kind,), {"start": lambda self, *args, **kwargs: kind.start(self, *args, **kwargs)})
            strategy = made()
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(START),
            num_rounds=int(context.run_config["num-server-rounds"]),
            evaluate_fn=evaluate_fn,
        )

    result = run_app(task, main)
    assert (result.outcome, result.round, result.reason) == (RunOutcome.COMPLETED, NUM_ROUNDS, "all rounds done")
    np.testing.assert_equal(task.newest(), [START[0] + NUM_ROUNDS])
    said = task.metrics(NUM_ROUNDS)
    assert said["duration_s"] is not None
    assert {"train_loss", "eval_loss"} <= set(said["metrics"])
    if evaluate_fn is not None:
        assert said["metrics"]["mean"] == said["metrics"]["round"] == NUM_ROUNDS


def test_flservers_own_strategy_that_overrides_start_is_followed_and_evaluated(task: Task) -> None:
    result = task.run(
        add_one(),
        model=START,
        strategy=OwnLoop(),
        evaluate_fn=lambda round_, arrays: {"mean": float(arrays["0"].mean())},
        settings={"num_rounds": NUM_ROUNDS},
    )
    assert (result.outcome, result.round, result.metrics["mean"]) == (RunOutcome.COMPLETED, NUM_ROUNDS, NUM_ROUNDS)


class StopsEarly(OwnLoop):
    def start(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, **options: Any) -> Result:  # type: ignore[override]
        return super().start(grid, initial_arrays, num_rounds=2, **options)


def test_a_strategy_that_stops_early_is_reported(task: Task) -> None:
    result = task.run(add_one(), model=START, strategy=StopsEarly(), settings={"num_rounds": 5})
    assert (result.outcome, result.round, result.reason) == (RunOutcome.COMPLETED, 2, "ended after 2 of 5 rounds")


def test_clients_that_all_fail_leave_no_model_and_fail_the_run(task: Task) -> None:
    def main(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(START)
        result = FedAvg().start(grid=grid, initial_arrays=arrays, num_rounds=1)
        context.state["arrays"] = result.arrays or arrays

    result = run_app(task, main, add_one(on_train=fail))
    assert result.outcome is RunOutcome.FAILED
    assert "ValueError: no data here" in result.reason
    assert task.models.versions() == []


def test_training_after_the_followed_strategy_is_reported_too(task: Task) -> None:
    def main(grid: Grid, context: Context) -> None:
        first = FedAvg(fraction_train=0.0, min_train_nodes=0)
        first.start(grid=grid, initial_arrays=ArrayRecord(START), num_rounds=1)
        result = FedAvg().start(grid=grid, initial_arrays=ArrayRecord(START), num_rounds=2)
        context.state["arrays"] = result.arrays

    result = run_app(task, main)
    assert (result.outcome, result.round, result.reason) == (RunOutcome.COMPLETED, 2, "the ServerApp ended")
    np.testing.assert_equal(task.newest(), [START[0] + 2])


def test_bagging_that_fails_stores_no_untrained_trees(task: Task) -> None:
    def main(grid: Grid, context: Context) -> None:
        FedXgbBagging().start(
            grid=grid, initial_arrays=ArrayRecord([np.frombuffer(b"{}", np.uint8)]), num_rounds=NUM_ROUNDS
        )

    result = run_app(task, main)  # the clients' answers are no trees
    assert result.outcome is RunOutcome.FAILED
    assert task.models.versions() == []


class AddOne(NumPyClient):
    def get_parameters(self, config: Any) -> Any:
        return START

    def fit(self, parameters: Any, config: Any) -> Any:
        return [array + 1 for array in parameters], 1, {"train_loss": 0.5}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        return 0.25, 1, {"accuracy": 0.5}


class EvaluateFails(AddOne):
    def evaluate(self, parameters: Any, config: Any) -> Any:
        raise ValueError("no test data")


def numpy_app(kind: type[NumPyClient] = AddOne, mods: list[Any] | None = None) -> ClientApp:
    return ClientApp(client_fn=lambda context: kind().to_client(), mods=mods)


def classic_fedavg() -> classic.FedAvg:
    return classic.FedAvg(initial_parameters=ndarrays_to_parameters(START), min_available_clients=3)


def refuse(message: Message, context: Context, call_next: Any) -> Message:
    return Message(Error(1, "no keys today"), reply_to=message)


@pytest.mark.parametrize("is_halted", [True, False])
def test_secure_aggregation_is_stored_if_it_did_not_halt_in_every_round(task: Task, is_halted: bool) -> None:
    def main(grid: Grid, context: Context) -> None:
        legacy = LegacyContext(context, config=ServerConfig(num_rounds=2), strategy=classic_fedavg())
        workflow = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2)
        DefaultWorkflow(fit_workflow=workflow)(grid, legacy)

    def make(number: int) -> ClientApp:
        return numpy_app(mods=[refuse if is_halted and number != 1 else secaggplus_mod])

    result = task.run(make, server_app=server_app(main), settings={"num_rounds": 2})
    assert (result.outcome, task.models.versions()) == (
        (RunOutcome.FAILED, []) if is_halted else (RunOutcome.COMPLETED, [1])
    )
    if is_halted:
        assert "nothing was trained" in result.reason
        assert "no keys today" in result.reason
    else:
        np.testing.assert_allclose(task.newest(), [START[0] + 2], atol=0.01)


def test_a_classic_workflow_in_an_app_is_stored_as_it_left_the_model(task: Task) -> None:
    def main(grid: Grid, context: Context) -> None:
        legacy = LegacyContext(context, config=ServerConfig(num_rounds=2), strategy=classic_fedavg())
        DefaultWorkflow()(grid, legacy)

    result = run_app(task, main, numpy_app())
    assert (result.outcome, result.round, result.reason) == (RunOutcome.COMPLETED, 2, "the ServerApp ended")
    np.testing.assert_equal(task.newest(), [START[0] + 2])


@pytest.mark.parametrize("is_server_fn", [False, True])
def test_an_app_that_leaves_no_model_reports_its_rounds_and_that_nothing_is_stored(
    task: Task, is_server_fn: bool
) -> None:
    config = ServerConfig(num_rounds=2)
    if is_server_fn:
        app = ServerApp(server_fn=lambda context: ServerAppComponents(strategy=classic_fedavg(), config=config))
    else:
        app = server_app(lambda grid, context: start_grid(grid=grid, strategy=classic_fedavg(), config=config) and None)
    result = task.run(numpy_app(), server_app=app, settings={"num_rounds": 2})
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, 2)
    assert "no model" in result.reason
    assert task.models.versions() == []


def ask_all(grid: Grid, kind: str, arrays: ArrayRecord) -> list[Message]:
    content = RecordDict({"arrays": arrays})
    return list(grid.send_and_receive([Message(content, node, kind) for node in grid.get_node_ids()]))


def test_the_result_of_an_apps_own_loop_follows_from_the_messages_of_the_line(task: Task) -> None:
    def main(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(START)
        for _ in range(2):
            arrays = ask_all(grid, "train", arrays)[0].content["arrays"]  # type: ignore[assignment]
        context.state["arrays"] = arrays

    result = run_app(task, main)
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, 2)
    np.testing.assert_equal(task.newest(), [START[0] + 2])


def test_a_loop_of_its_own_in_which_no_training_succeeds_fails(task: Task) -> None:
    def main(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(START)
        ask_all(grid, "train", arrays)
        context.state["arrays"] = arrays

    result = run_app(task, main, add_one(on_train=fail))
    assert (result.outcome, result.round) == (RunOutcome.FAILED, 0)
    assert "no data here" in result.reason
    assert task.models.versions() == []


def test_an_app_that_only_evaluates_completes_and_reports_that_no_client_was_asked_to_train(task: Task) -> None:
    def main(grid: Grid, context: Context) -> None:
        context.state["arrays"] = ArrayRecord(START)
        ask_all(grid, "evaluate", ArrayRecord(START))

    result = run_app(task, main)
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, 0)
    assert "no client was asked to train" in result.reason
    assert task.models.versions() == []


def test_a_strategy_that_only_evaluates_completes(task: Task) -> None:
    strategy = FedAvg(fraction_train=0.0, min_train_nodes=0)
    result = task.run(add_one(), model=START, strategy=strategy, settings={"num_rounds": 2})
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, 2)
    assert "no client was asked to train" in result.reason
    assert result.metrics["eval_loss"] == 0.25
    assert task.models.versions() == []


@pytest.mark.parametrize("is_first", [True, False])
def test_a_model_equal_to_the_starting_model_is_no_new_version(task: Task, is_first: bool) -> None:
    if not is_first:
        task.run(add_one(), model=START, settings={"num_rounds": 1})
    result = task.run(add_one(step=0.0), model=START, settings={"num_rounds": 1})
    assert (result.outcome, result.model_path) == (RunOutcome.COMPLETED, None)
    assert "no new version" in result.reason
    assert task.models.versions() == ([] if is_first else [1])


def test_rounds_without_a_new_model_are_reported(task: Task) -> None:
    class Moody(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            found = super().aggregate_train(server_round, replies)
            return found if server_round == 1 else (None, found[1])

    result = task.run(add_one(), model=START, strategy=Moody(), settings={"num_rounds": 3})
    assert result.outcome is RunOutcome.COMPLETED
    assert "2 rounds gave no new model" in result.reason


def ends(task: Task) -> list[RunEnd]:
    return [client.end() for client in task.clients]


def assert_everybody_finished(task: Task) -> None:
    assert [end.outcome for end in ends(task)] == [Outcome.FINISHED] * len(task.clients)


def test_an_exception_in_one_evaluation_is_one_failed_message(task: Task) -> None:
    def fail_once(message: Message) -> None:
        if message.content["config"]["server-round"] == 1:
            raise ValueError("no test data")

    result = task.run(add_one(on_evaluate=fail_once), model=START, settings={"num_rounds": 2})
    assert (result.outcome, result.round, result.metrics["eval_loss"]) == (RunOutcome.COMPLETED, 2, 0.25)
    assert "ValueError: no test data" in result.reason
    np.testing.assert_equal(task.newest(), [START[0] + 2])
    assert_everybody_finished(task)


def test_an_exception_in_a_classic_evaluation_is_one_failed_message(task: Task) -> None:
    result = task.run(numpy_app(EvaluateFails), model=START, strategy=classic_fedavg(), settings={"num_rounds": 2})
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, 2)
    assert "ValueError: no test data" in result.reason
    assert_everybody_finished(task)


@pytest.mark.parametrize("is_classic", [False, True])
def test_local_differential_privacy_with_evaluation_fails_the_evaluations_only(task: Task, is_classic: bool) -> None:
    mods = [LocalDpMod(clipping_norm=100.0, sensitivity=1e-9, epsilon=1.0, delta=0.1)]
    app = numpy_app(mods=mods) if is_classic else add_one(mods=mods)
    strategy = classic_fedavg() if is_classic else None
    result = task.run(app, model=START, strategy=strategy, settings={"num_rounds": 2})
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, 2)
    assert "LocalDpMod expects exactly one ArrayRecord" in result.reason
    np.testing.assert_allclose(task.newest(), [START[0] + 2], atol=1e-6)
    assert_everybody_finished(task)


@pytest.mark.parametrize("kind", ["train.mine", "query", "evaluate.mine", "query.mine"])
@pytest.mark.parametrize("is_classic", [False, True])
def test_a_message_that_the_app_has_no_function_for_is_one_failed_message(
    task: Task, kind: str, is_classic: bool
) -> None:
    seen: list[Message] = []

    def main(grid: Grid, context: Context) -> None:
        seen.extend(ask_all(grid, kind, ArrayRecord(START)))
        strategy: Any = classic_fedavg() if is_classic else FedAvg()
        if is_classic:
            start_grid(grid=grid, strategy=strategy, config=ServerConfig(num_rounds=1))
        else:
            strategy.start(grid=grid, initial_arrays=ArrayRecord(START), num_rounds=1)

    result = run_app(task, main, numpy_app() if is_classic else add_one())
    assert [message.has_error() for message in seen] == [True] * 3
    assert result.outcome is RunOutcome.COMPLETED
    assert_everybody_finished(task)


def test_an_exception_in_training_still_ends_the_client(task: Task) -> None:
    def has_joined(client: ThreadClient) -> bool:
        return any(progress.phase is Phase.WAITING for progress in client.progress)

    def fail_with_all_there(message: Message) -> None:
        task.wait_until(lambda: [has_joined(client) for client in task.clients] == [True] * NUM_CLIENTS)
        fail(message)

    def make(number: int) -> ClientApp:
        return add_one(on_train=fail_with_all_there) if number == 1 else add_one()

    result = task.run(make, model=START, strategy=FedAvg(), settings={"num_rounds": 2, "min_clients": 2})
    assert result.outcome is RunOutcome.COMPLETED
    assert sorted(end.outcome for end in ends(task)) == [Outcome.FAILED, Outcome.FINISHED, Outcome.FINISHED]


def test_after_a_relaunch_a_classic_strategys_clients_see_the_runs_rounds_and_each_takes_its_time(task: Task) -> None:
    def kill(round_: int, arrays: Any) -> dict[str, float]:
        if round_ == 3:
            task.wait_until(lambda: task.round_kept("r") == 2)
            raise KilledError
        return {}

    options: dict[str, Any] = {"model": START, "strategy": classic_fedavg()}
    with pytest.raises(KilledError):
        task.run(numpy_app(), evaluate_fn=kill, settings={"num_rounds": 5, "run_id": "r", "launch": 1}, **options)
    task.run(numpy_app(), settings={"num_rounds": 5, "run_id": "r", "launch": 2}, **options)
    seen = [(answer.kind, answer.round) for answer in task.clients[0].answered]
    assert seen == [(kind, round_) for round_ in (3, 4, 5) for kind in (MessageType.TRAIN, MessageType.EVALUATE)]
    assert task.metrics(5)["duration_s"] is not None
    assert task.metrics(5)["metrics"]["eval_loss"] == 0.25


class OwnLoopAdam(OwnLoop, FedAdam):
    pass


class Odd(FedAvg):
    """A `start` that cannot be told how many rounds are left."""

    def start(self, grid: Grid, model: ArrayRecord) -> ArrayRecord:  # type: ignore[override]
        for round_ in range(1, 4):
            sent = self.configure_train(round_, model, ConfigRecord(), grid)
            model = self.aggregate_train(round_, grid.send_and_receive(sent))[0] or model
        return model


@pytest.mark.parametrize("is_resumable", [True, False])
def test_a_killed_app_with_a_start_of_its_own_goes_on_or_begins_again(tmp_path: Path, is_resumable: bool) -> None:
    def main(grid: Grid, context: Context) -> None:
        if is_resumable:
            OwnLoopAdam().start(grid=grid, initial_arrays=ArrayRecord(START), num_rounds=4)
        else:
            context.state["arrays"] = Odd().start(grid, ArrayRecord(START))

    undisturbed, task = Task(tmp_path / "one"), Task(tmp_path / "many")
    run_app(undisturbed, main)

    def kill(round_: int, arrays: Any) -> dict[str, float]:
        if round_ == 3:
            task.wait_until(lambda: task.round_kept("r") == 2)
            raise KilledError
        return {}

    settings = {"run_id": "r", "launch": 1}
    with pytest.raises(KilledError):
        task.run(add_one(), server_app=server_app(main), evaluate_fn=kill, settings=settings)
    result = run_app(task, main, run_id="r", launch=2)
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, 4 if is_resumable else 3)
    seen = [answer.round for answer in task.clients[0].answered if answer.kind == "train"]
    assert seen == ([3, 4] if is_resumable else [1, 2, 3])
    np.testing.assert_allclose(task.newest(), undisturbed.newest())


def test_a_server_app_has_its_own_projects_configuration_and_rounds(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.config]\nnum-server-rounds = 2\nlr = 0.5\n")
    seen: dict[str, Any] = {}

    def main(grid: Grid, context: Context) -> None:
        seen.update(context.run_config)
        rounds = int(context.run_config["num-server-rounds"])
        FedAvg().start(grid=grid, initial_arrays=ArrayRecord(START), num_rounds=rounds)

    home = ModuleType("a_project_of_this_test")
    home.__file__ = str(tmp_path / "server_app.py")
    home.app = server_app(main)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, home.__name__, home)
    result = task.run(add_one(), server_app=home.app, settings={})
    assert (seen, result.round) == ({"num-server-rounds": 2, "lr": 0.5}, 2)
    seen.clear()
    task.run(add_one(), server_app=home.app, settings={"num_rounds": 1})
    assert seen["num-server-rounds"] == 1, "whoever says a number for this run outweighs the project"
