import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.common import Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import strategy as classic
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping as AdaptiveClipping
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from fedops_mqtt.aggregation.errors import UnfitStrategyError
from fedops_mqtt.aggregation.strategy_state import (
    StrategyState,
    arrays_in,
    begin_from,
    check_strategy,
    first_models,
    parts,
    record_of,
    to_arrays,
    to_parameters,
)

FIRST = {"w": np.zeros((2, 2)), "b": np.ones(2)}
STORED = {"w": np.full((2, 2), 5.0), "b": np.full(2, 6.0)}


def record(*values: float) -> ArrayRecord:
    return ArrayRecord({str(at): Array(np.array([value])) for at, value in enumerate(values)})


def carried(make: Callable[[], Any], change: Callable[[Any], None]) -> Any:
    """A new strategy with the state that another one of its class has come to."""
    before, after = make(), make()
    state = StrategyState(before)
    change(before)
    StrategyState(after).restore(state.capture())
    return after


def set_to(**values: Any) -> Callable[[Any], None]:
    return lambda strategy: vars(strategy).update(values)


def test_a_records_arrays_are_copies_unless_views_are_asked_for() -> None:
    record = record_of({"w": np.ones((2, 3), "f4", order="F"), "t": np.array(2.0)})
    copies, views = arrays_in(record), arrays_in(record, are_views=True)
    np.testing.assert_equal(copies, views)
    assert all(array.flags.writeable for array in copies.values())
    assert not any(array.flags.writeable or array.flags.owndata for array in views.values())


def test_arrays_in_every_form_come_back() -> None:
    kept: dict[str, Any] = {
        "named": {"w": np.ones(2)},
        "listed": [np.array([3.0])],
        "single": np.array([4.0]),
        "record": record(1.0, 2.0),
        "trees": b"tree",
    }
    after = carried(FedAvg, set_to(**kept))
    np.testing.assert_equal(
        [after.named, after.listed, after.single, after.trees],
        [kept["named"], kept["listed"], kept["single"], b"tree"],
    )
    assert [array.numpy().tolist() for array in after.record.values()] == [[1.0], [2.0]]


@pytest.mark.parametrize("tensors", [[b"a tree", b"another"], []])
def test_parameters_come_back_as_they_were(tensors: list[bytes]) -> None:
    made = ndarrays_to_parameters([np.array([1.0])])
    parameters = Parameters([*made.tensors, *tensors], "a type")
    assert carried(FedAvg, set_to(own=parameters)).own == parameters


def test_numbers_texts_and_dicts_of_them_come_back_if_they_changed() -> None:
    class Own(FedAvg):
        def __init__(self, learning_rate: float) -> None:
            super().__init__()
            self.learning_rate, self.best, self.where, self.seen = learning_rate, 0.0, None, {7: 1}

    before, after = Own(0.1), Own(0.2)
    state = StrategyState(before)
    before.best, before.where, before.seen = np.float32(0.5), "here", {7: 2, 8: 1}  # type: ignore[assignment]
    StrategyState(after).restore(state.capture())
    assert (after.best, after.where, after.seen) == (0.5, "here", {7: 2, 8: 1})
    assert after.learning_rate == 0.2  # configuration is no state


def test_a_strategy_that_refers_to_its_wrapper_is_visited_once() -> None:
    inner = FedAvg()
    wrapper = AdaptiveClipping(inner, noise_multiplier=0.5, num_sampled_clients=20)
    vars(inner)["outer"] = wrapper
    assert [owner for _, owner in parts(wrapper)] == [wrapper, inner]


def test_a_history_in_a_list_goes_on() -> None:
    assert carried(FedAvg, set_to(losses=[0.5, 0.25])).losses == [0.5, 0.25]


def test_arrays_that_are_configuration_are_no_state_and_those_changed_in_place_are() -> None:
    strategy = FedAvg()
    vars(strategy).update(weights=np.ones(3), sums=np.zeros(3))
    state = StrategyState(strategy)
    vars(strategy)["sums"] += 1
    assert list(state.capture()) == ["sums"]


def test_what_is_captured_does_not_change_with_the_strategy() -> None:
    strategy = FedAvg()
    state = StrategyState(strategy)
    set_to(one=np.zeros(2), many=[np.zeros(2)], named={"a": np.zeros(2)})(strategy)
    kept: dict[str, Any] = state.capture()
    for array in (strategy.one, strategy.many[0], strategy.named["a"]):  # type: ignore[attr-defined]
        array += 1
    assert not any(array.any() for array in (kept["one"], kept["many"][0], kept["named"]["a"]))


def test_what_a_wrapper_and_the_strategy_in_it_remember_comes_back() -> None:
    def change(strategy: Any) -> None:
        strategy.clipping_norm, strategy.strategy.m_t = 0.25, {"w": np.ones(1)}

    after = carried(lambda: AdaptiveClipping(FedAdam(), noise_multiplier=0.5, num_sampled_clients=20), change)
    assert (after.clipping_norm, after.strategy.m_t) == (0.25, {"w": np.ones(1)})


class Accountant:
    def __init__(self) -> None:
        self.spent = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.spent}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.spent = state["spent"]


def test_a_privacy_accountant_goes_on_counting() -> None:
    class Own(FedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.accountant = Accountant()

    def spend(strategy: Any) -> None:
        strategy.accountant.spent = 1.5

    assert carried(Own, spend).accountant.spent == 1.5


class SavesItself(FedAvg):
    secret = 1

    def save_state(self) -> dict[str, Any]:
        return {"secret": self.secret}

    def load_state(self, state: dict[str, Any]) -> None:
        self.secret = state["secret"]


def test_a_strategy_may_define_its_own_state_wrapped_or_not() -> None:
    assert carried(SavesItself, set_to(secret=2)).secret == 2

    def change(strategy: Any) -> None:
        strategy.strategy.secret = 3

    wrapped = carried(lambda: AdaptiveClipping(SavesItself(), noise_multiplier=0.5, num_sampled_clients=20), change)
    assert wrapped.strategy.secret == 3


def test_the_class_of_a_state_names_what_is_wrapped() -> None:
    wrapped = AdaptiveClipping(FedAvgM(), noise_multiplier=0.5, num_sampled_clients=20)
    assert StrategyState(wrapped).class_names != StrategyState(FedAvgM()).class_names
    assert StrategyState(wrapped).class_names.endswith("FedAvgM")


class Tensor:
    """What is used of a torch tensor."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def detach(self) -> "Tensor":
        return self

    cpu = detach

    def numpy(self) -> Any:
        return self.values

    def new_tensor(self, values: Any) -> "Tensor":
        return Tensor(values)


class Network:
    """What is used of a Keras model."""

    def __init__(self) -> None:
        self.weights = list(FIRST.values())

    def get_weights(self) -> Any:
        return self.weights

    def set_weights(self, weights: Any) -> None:
        self.weights = weights


FORMS: dict[str, Any] = {
    "parameters": lambda: ndarrays_to_parameters(list(FIRST.values())),
    "record": lambda: ArrayRecord({name: Array(array) for name, array in FIRST.items()}),
    "list": lambda: [array.copy() for array in FIRST.values()],
    "tuple": lambda: tuple(FIRST.values()),
    "dict": lambda: dict(FIRST),
    "ordered": lambda: OrderedDict(FIRST),
    "in a row": lambda: np.concatenate([array.ravel() for array in FIRST.values()]),
    "tensors": lambda: {name: Tensor(array) for name, array in FIRST.items()},
    "network": Network,
}


def values_of(value: Any) -> Any:
    match value:
        case Parameters():
            return parameters_to_ndarrays(value)
        case ArrayRecord():
            return list(arrays_in(value).values())
        case Network():
            return value.weights
        case dict():
            return [getattr(item, "values", item) if isinstance(item, Tensor) else item for item in value.values()]
    return value if isinstance(value, np.ndarray) else list(value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_copy_of_the_first_model_becomes_the_stored_one_whatever_it_is_called(form: str, is_wrapped: bool) -> None:
    inner = classic.FedAvg()
    vars(inner)["my_baseline"] = FORMS[form]()
    strategy = classic.DifferentialPrivacyServerSideFixedClipping(inner, 0, 1, 2) if is_wrapped else inner
    begin_from(strategy, STORED, instead_of=[FIRST], is_stored=True)
    found = values_of(vars(inner)["my_baseline"])
    expected = np.concatenate([a.ravel() for a in STORED.values()]) if form == "in a row" else list(STORED.values())
    np.testing.assert_equal(found, expected)
    assert type(vars(inner)["my_baseline"]) is type(FORMS[form]())


def test_the_model_that_a_strategy_was_made_with_is_the_first_one_too() -> None:
    strategy = classic.FedAdam(initial_parameters=ndarrays_to_parameters(list(FIRST.values())))
    begin_from(strategy, STORED, instead_of=first_models(strategy), is_stored=True)
    np.testing.assert_equal(strategy.current_weights, list(STORED.values()))


def test_another_model_of_the_same_shape_is_not_replaced() -> None:
    strategy = classic.FedAvg()
    vars(strategy)["teacher"] = [array + 9 for array in FIRST.values()]
    begin_from(strategy, STORED, instead_of=[FIRST], is_stored=True)
    np.testing.assert_equal(vars(strategy)["teacher"], [array + 9 for array in FIRST.values()])


class ReadOnly(classic.FedAvg):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "anchor":
            raise AttributeError("anchor is fixed")
        super().__setattr__(name, value)


def test_a_strategy_whose_copy_cannot_be_replaced_is_refused_and_named() -> None:
    strategy = ReadOnly()
    vars(strategy)["anchor"] = list(FIRST.values())
    with pytest.raises(UnfitStrategyError, match=r"ReadOnly.*'anchor'.*anchor is fixed"):
        begin_from(strategy, STORED, instead_of=[FIRST], is_stored=True)


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_strategy_that_cannot_run_over_the_line_is_refused(is_wrapped: bool) -> None:
    strategy: Any = classic.FedAvgAndroid()
    if is_wrapped:
        strategy = classic.DifferentialPrivacyServerSideFixedClipping(strategy, 0, 1, 2)
    with pytest.raises(UnfitStrategyError, match="Android"):
        check_strategy(strategy)


def test_trees_are_rows_of_bytes_and_come_back_as_they_were() -> None:
    tree = json.dumps({"learner": {}}).encode()
    arrays = to_arrays(Parameters([tree], ""))
    assert {name: (array.dtype, array.ndim) for name, array in arrays.items()} == {"0:bytes": (np.uint8, 1)}
    assert to_parameters(arrays, classic.FedAvg()) == Parameters([tree], "")
    named = {"0": np.frombuffer(tree, np.uint8)}
    assert to_parameters(named, classic.FedXgbBagging()).tensors == [tree]
    assert to_parameters({"0": np.zeros(0, np.uint8)}, classic.FedXgbBagging()).tensors == []


def test_an_array_of_bytes_that_is_no_tree_stays_an_array() -> None:
    arrays = {"w": np.arange(3, dtype=np.uint8)}
    np.testing.assert_equal(to_arrays(to_parameters(arrays, classic.FedAvg()), ["w"]), arrays)
