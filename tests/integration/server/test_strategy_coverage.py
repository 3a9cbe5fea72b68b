"""Every strategy of the installed Flower: rounds in several runs and launches give what they give in one run.

A strategy that is new in Flower fails the first test until somebody has decided about it, here and in the docs.
"""

import gc
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flwr.server.strategy as classic
import flwr.serverapp.strategy as messages
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from strategy_parts import KilledError, Task

from fedops_mqtt.aggregation.strategy_state import REFUSED
from fedops_mqtt.protocol import RunOutcome

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DOCS = Path(__file__).parents[3] / "docs" / "flower-over-the-line.md"
NUM_SAMPLED = 3
MODEL = {"w": np.array([[1.0, -2.0], [0.5, 3.0]]), "b": np.array([0.25, -0.5])}
FAMILIES = {"message": messages, "classic": classic}
NO_STRATEGIES = {"Strategy", "Result"}


def trained(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What every client makes of the model: the order of replies does not matter, and no two rounds are alike."""
    return [array * 0.75 + np.arange(array.size).reshape(array.shape) + 1 for array in arrays]


def with_a_tree(model: bytes) -> bytes:
    """A client's booster of one tree, which depends on the global one."""
    num_trees = (
        json.loads(model)["learner"]["gradient_booster"]["model"]["gbtree_model_param"]["num_trees"] if model else 0
    )
    booster = {
        "gbtree_model_param": {"num_trees": "1", "num_parallel_tree": "1"},
        "iteration_indptr": [0, 1],
        "trees": [{"id": 0, "seen": num_trees}],
        "tree_info": [0],
    }
    return json.dumps({"learner": {"gradient_booster": {"model": booster}}}).encode()


def message_app(*, mods: list[Any] | None = None, has_trees: bool = False) -> ClientApp:
    app = ClientApp()

    @app.train(mods=mods)
    def train(message: Message, context: Context) -> Message:
        record = message.content["arrays"]
        if has_trees:
            made = ArrayRecord([np.frombuffer(with_a_tree(record["0"].numpy().tobytes()), np.uint8)])
        else:
            values = trained([array.numpy() for array in record.values()])
            made = ArrayRecord({name: Array(value) for name, value in zip(record, values, strict=True)})
        metrics = MetricRecord({"num-examples": 1, "train_loss": 0.5})
        return Message(RecordDict({"arrays": made, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "eval_loss": 0.5})}), reply_to=message)

    return app


class Trainer(Client):
    def __init__(self, has_trees: bool) -> None:
        self.has_trees = has_trees

    def fit(self, ins: FitIns) -> FitRes:
        if self.has_trees:
            made = Parameters([with_a_tree(b"".join(ins.parameters.tensors))], "")
        else:
            made = ndarrays_to_parameters(trained(parameters_to_ndarrays(ins.parameters)))
        bits = {"dpfedavg_norm_bit": ins.config.get("dpfedavg_clip_norm", 0) > 0.1, "norm_bit": True}
        return FitRes(Status(Code.OK, ""), made, 1, bits)

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:
        return EvaluateRes(Status(Code.OK, ""), 0.5, 1, {})


def classic_app(*, mods: list[Any] | None = None, has_trees: bool = False) -> ClientApp:
    return ClientApp(client_fn=lambda context: Trainer(has_trees), mods=mods)


def first_parameters() -> Parameters:
    """What the program builds its strategy with: always the first model, in the second run too."""
    return ndarrays_to_parameters(list(MODEL.values()))


def classic_avgm() -> Any:
    return classic.FedAvgM(initial_parameters=first_parameters(), server_learning_rate=0.5, server_momentum=0.9)


def classic_adam() -> Any:
    return classic.FedAdam(initial_parameters=first_parameters())


def message_avgm() -> Any:
    return messages.FedAvgM(server_learning_rate=0.5, server_momentum=0.9)


@pytest.fixture(scope="module", autouse=True)
def cheap_collections() -> Iterator[None]:
    """Flower collects garbage in every round (`to_numpy_ndarrays`), all that pytest has imported: 0.3 s each."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Case:
    """How a strategy is made, and what its clients need."""

    def __init__(self, make: Callable[[], Any], *, mods: list[Any] | None = None, has_trees: bool = False) -> None:
        self.make = make
        self.clients: dict[str, Any] = {"mods": mods, "has_trees": has_trees}
        self.has_trees = has_trees


def dp(wrapper: Callable[..., Any], *args: Any, mods: list[Any] | None = None) -> Callable[[Callable[[], Any]], Case]:
    return lambda make: Case(lambda: wrapper(make(), *args), mods=mods)


MESSAGE_DP = {
    "ServerSideFixedClipping": dp(messages.DifferentialPrivacyServerSideFixedClipping, 0, 3.0, NUM_SAMPLED),
    "ServerSideAdaptiveClipping": dp(messages.DifferentialPrivacyServerSideAdaptiveClipping, 0, NUM_SAMPLED),
    "ClientSideFixedClipping": dp(
        messages.DifferentialPrivacyClientSideFixedClipping, 0, 3.0, NUM_SAMPLED, mods=[fixedclipping_mod]
    ),
    "ClientSideAdaptiveClipping": dp(
        messages.DifferentialPrivacyClientSideAdaptiveClipping, 0, NUM_SAMPLED, mods=[adaptiveclipping_mod]
    ),
}
CLASSIC_DP = {
    "ServerSideFixedClipping": dp(classic.DifferentialPrivacyServerSideFixedClipping, 0, 3.0, NUM_SAMPLED),
    "ServerSideAdaptiveClipping": dp(classic.DifferentialPrivacyServerSideAdaptiveClipping, 0, NUM_SAMPLED),
    "ClientSideFixedClipping": dp(classic.DifferentialPrivacyClientSideFixedClipping, 0, 3.0, NUM_SAMPLED),
    "ClientSideAdaptiveClipping": dp(classic.DifferentialPrivacyClientSideAdaptiveClipping, 0, NUM_SAMPLED),
}

CASES: dict[str, Case] = {
    "message Bulyan": Case(messages.Bulyan),
    **{f"message DifferentialPrivacy{name}": make(messages.FedAdam) for name, make in MESSAGE_DP.items()},
    "message DifferentialPrivacyServerSideFixedClipping(FedAvgM)": MESSAGE_DP["ServerSideFixedClipping"](message_avgm),
    "message FedAdagrad": Case(messages.FedAdagrad),
    "message FedAdam": Case(messages.FedAdam),
    "message FedAvg": Case(messages.FedAvg),
    "message FedAvgM": Case(message_avgm),
    "message FedMedian": Case(messages.FedMedian),
    "message FedProx": Case(lambda: messages.FedProx(proximal_mu=0.1)),
    "message FedTrimmedAvg": Case(messages.FedTrimmedAvg),
    "message FedXgbBagging": Case(messages.FedXgbBagging, has_trees=True),
    "message FedXgbCyclic": Case(messages.FedXgbCyclic, has_trees=True),
    "message FedYogi": Case(messages.FedYogi),
    "message Krum": Case(messages.Krum),
    "message MultiKrum": Case(lambda: messages.MultiKrum(num_nodes_to_select=2)),
    "message QFedAvg": Case(lambda: messages.QFedAvg(client_learning_rate=0.1)),
    "classic Bulyan": Case(lambda: classic.Bulyan(num_malicious_clients=0, to_keep=0)),
    **{f"classic DifferentialPrivacy{name}": make(classic_adam) for name, make in CLASSIC_DP.items()},
    "classic DifferentialPrivacyServerSideFixedClipping(FedAvgM)": CLASSIC_DP["ServerSideFixedClipping"](classic_avgm),
    "classic DPFedAvgFixed": dp(classic.DPFedAvgFixed, NUM_SAMPLED, 3.0, 0.0)(classic_adam),
    "classic DPFedAvgAdaptive": dp(classic.DPFedAvgAdaptive, NUM_SAMPLED, 0.1, 0.0)(classic_adam),
    "classic FaultTolerantFedAvg": Case(classic.FaultTolerantFedAvg),
    "classic FedAdagrad": Case(lambda: classic.FedAdagrad(initial_parameters=first_parameters())),
    "classic FedAdam": Case(classic_adam),
    "classic FedAvg": Case(classic.FedAvg),
    "classic FedAvgM": Case(classic_avgm),
    "classic FedMedian": Case(classic.FedMedian),
    "classic FedOpt": Case(lambda: classic.FedOpt(initial_parameters=first_parameters())),
    "classic FedProx": Case(lambda: classic.FedProx(proximal_mu=0.1)),
    "classic FedTrimmedAvg": Case(classic.FedTrimmedAvg),
    "classic FedXgbBagging": Case(lambda: classic.FedXgbBagging(initial_parameters=Parameters([], "")), has_trees=True),
    "classic FedXgbCyclic": Case(lambda: classic.FedXgbCyclic(initial_parameters=Parameters([], "")), has_trees=True),
    "classic FedYogi": Case(lambda: classic.FedYogi(initial_parameters=first_parameters())),
    "classic Krum": Case(classic.Krum),
    "classic QFedAvg": Case(classic.QFedAvg),
}

EACH_KIND = {
    "message DifferentialPrivacyClientSideAdaptiveClipping",
    "message FedAvgM",
    "message FedXgbCyclic",
    "classic DPFedAvgAdaptive",
    "classic FedAdam",
    "classic FedXgbBagging",
}
"""One strategy of each way to keep state; all of them are in the long ring, and in `make test-flwr`."""


def flowers_strategies() -> set[str]:
    """Every strategy that the installed Flower exports, with its family."""
    return {
        f"{family} {name}"
        for family, module in FAMILIES.items()
        for name in module.__all__
        if name not in NO_STRATEGIES
    }


def test_every_strategy_of_flower_has_been_decided_about() -> None:
    assert flowers_strategies() == {name for name in CASES if "(" not in name} | {f"classic {name}" for name in REFUSED}


def test_the_docs_list_for_every_strategy_whether_it_is_covered() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    said = {
        f"{family} {name}": cell.strip()
        for name, *cells in rows
        for family, cell in zip(("message", "classic"), cells, strict=True)
        if cell.strip() != "-"
    }
    assert {name for name, cell in said.items() if cell.startswith("refused")} == {f"classic {x}" for x in REFUSED}
    assert set(said) == flowers_strategies()


def evaluate(round_: int, arrays: Any) -> dict[str, float]:
    return {"loss": 0.5}


def run(task: Task, name: str, num_rounds: int, **options: Any) -> None:
    case = CASES[name]
    make_app = message_app if name.startswith("message") else classic_app
    model: Any = [np.zeros(0, np.uint8)] if name.startswith("message") else None
    result = task.run(
        make_app(**case.clients),
        model=model if case.has_trees else MODEL,
        strategy=case.make(),
        evaluate_fn=options.pop("evaluate_fn", evaluate),
        settings={"num_rounds": num_rounds, **options},
    )
    assert (result.outcome, result.round) == (RunOutcome.COMPLETED, num_rounds), result.reason


def kill_in_round_3(task: Task, run_id: str) -> Callable[[int, Any], dict[str, float]]:
    """An evaluation that ends the server in round 3, when what round 2 gave is kept."""

    def evaluate_and_kill(round_: int, arrays: Any) -> dict[str, float]:
        if round_ == 3:
            task.wait_until(lambda: task.round_kept(run_id) == 2)
            raise KilledError
        return evaluate(round_, arrays)

    return evaluate_and_kill


@pytest.mark.parametrize(
    "name", [name if name in EACH_KIND else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_two_runs_the_second_one_killed_and_launched_again_give_what_one_run_gives(name: str, tmp_path: Path) -> None:
    undisturbed, task = Task(tmp_path / "one"), Task(tmp_path / "many")
    run(undisturbed, name, 6)
    run(task, name, 2, run_id="first", launch=1)
    with pytest.raises(KilledError):
        run(task, name, 4, run_id="second", launch=1, evaluate_fn=kill_in_round_3(task, "second"))
    run(task, name, 4, run_id="second", launch=2)
    assert next(line["round"] for line in task.lines if "status" not in line and line["duration_s"]) == 3
    for value, expected in zip(task.newest(), undisturbed.newest(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["FedAvgAndroid", "FedXgbNnAvg"])
def test_a_strategy_that_cannot_run_is_refused_before_a_client_can_join(name: str, tmp_path: Path) -> None:
    task = Task(tmp_path)
    result = task.run(classic_app(), model=MODEL, strategy=getattr(classic, name)())
    assert result.outcome is RunOutcome.FAILED
    assert name in result.reason
    assert not task.clients


ZERO = {"w": np.zeros(2)}


def plain_adam() -> Any:
    """Without memory: each round goes one step towards what the clients found."""
    zeros = ndarrays_to_parameters(list(ZERO.values()))
    return classic.FedAdam(initial_parameters=zeros, eta=1.0, beta_1=0.0, beta_2=0.0)


def plain_avgm() -> Any:
    zeros = ndarrays_to_parameters(list(ZERO.values()))
    return classic.FedAvgM(initial_parameters=zeros, server_momentum=0.0, server_learning_rate=0.5)


class OwnBaseline(classic.FedAvg):
    """One of somebody's own: goes half of the way from a model that it keeps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.so_far = [array.copy() for array in ZERO.values()]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        found, metrics = super().aggregate_fit(server_round, results, failures)
        pairs = zip(self.so_far, parameters_to_ndarrays(found), strict=True)
        self.so_far = [before + 0.5 * (after - before) for before, after in pairs]
        return ndarrays_to_parameters(self.so_far), metrics


class AddOne(Trainer):
    def fit(self, ins: FitIns) -> FitRes:
        made = ndarrays_to_parameters([array + 1 for array in parameters_to_ndarrays(ins.parameters)])
        return FitRes(Status(Code.OK, ""), made, 1, {})


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize(
    ("make", "step"), [(plain_avgm, 0.5), (plain_adam, 1.0), (OwnBaseline, 0.5)], ids=["FedAvgM", "FedAdam", "own"]
)
def test_without_its_state_a_strategy_computes_against_the_loaded_model(
    make: Callable[[], Any], step: float, is_wrapped: bool, tmp_path: Path
) -> None:
    task = Task(tmp_path)
    app = ClientApp(client_fn=lambda context: AddOne(has_trees=False))
    for run_number in (1, 2):
        strategy = classic.DifferentialPrivacyServerSideFixedClipping(make(), 0, 10.0, 3) if is_wrapped else make()
        task.run(app, model=ZERO, strategy=strategy, settings={"num_rounds": 2})
        np.testing.assert_allclose(task.newest(), [np.full(2, 2 * run_number * step)], atol=1e-6)
        for name in task.kept:  # as after a roll-back
            (task.folder / "store" / "t" / ".checkpoints" / name).unlink()


def test_a_strategy_of_another_class_begins_from_the_model_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task(tmp_path)
    task.run(message_app(), model=MODEL, strategy=messages.FedAdam(), settings={"num_rounds": 1})
    assert len(task.kept) == 1
    result = task.run(message_app(), model=MODEL, strategy=messages.FedYogi(), settings={"num_rounds": 1})
    assert result.outcome is RunOutcome.COMPLETED
    assert "state of another class" in caplog.text
    task.run(message_app(), model=MODEL, strategy=messages.FedAvg(), settings={"num_rounds": 1})
    assert task.kept == []


def test_a_failed_run_leaves_the_state_of_the_run_before(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.run(message_app(), model=MODEL, strategy=messages.FedAdam(), settings={"num_rounds": 1})
    kept = task.kept

    def fail_in_round_2(round_: int, arrays: Any) -> dict[str, float]:
        if round_ == 2:
            raise ValueError("no test data")
        return {}

    result = task.run(
        message_app(),
        model=MODEL,
        strategy=messages.FedAdam(),
        evaluate_fn=fail_in_round_2,
        settings={"num_rounds": 2, "run_id": "r", "launch": 1},
    )
    assert result.outcome is RunOutcome.FAILED
    assert task.kept == kept
