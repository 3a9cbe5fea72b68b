from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.server.strategy import FedAvgM as ClassicFedAvgM
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping as AdaptiveClipping
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from fedops_mqtt.server.app_strategy import _wrap, capture_state, make_fedavg, own_minimum, restore_state


def record(*values: float) -> ArrayRecord:
    return ArrayRecord({str(at): Array(np.array([value])) for at, value in enumerate(values)})


def test_momenta_by_name_and_in_lists_and_records_come_back() -> None:
    adam, momentum, classic = FedAdam(), FedAvgM(), ClassicFedAvgM()
    adam.m_t, adam.v_t = {"w": np.ones(2)}, {"w": np.zeros(2)}
    momentum.current_arrays, momentum.momentum_vector = record(1.0, 2.0), [np.array([3.0])]
    classic.momentum_vector = [np.array([4.0])]
    fresh: list[Any] = [FedAdam(), FedAvgM(), ClassicFedAvgM()]
    for before, after in zip((adam, momentum, classic), fresh, strict=True):
        restore_state(after, capture_state(before))
    np.testing.assert_equal([fresh[0].m_t, fresh[0].v_t], [adam.m_t, adam.v_t])
    assert [array.numpy().tolist() for array in fresh[1].current_arrays.values()] == [[1.0], [2.0]]
    assert fresh[1].momentum_vector == [np.array([3.0])]
    assert fresh[2].momentum_vector == [np.array([4.0])]


def test_what_a_wrapper_and_the_strategy_in_it_remember_comes_back() -> None:
    def make() -> Any:
        return AdaptiveClipping(FedAdam(), noise_multiplier=0.5, num_sampled_clients=20)

    before, after = make(), make()
    before.clipping_norm, before.strategy.m_t = 0.25, {"w": np.ones(1)}
    restore_state(after, capture_state(before))
    assert (after.clipping_norm, after.strategy.m_t) == (0.25, {"w": np.ones(1)})


def test_configuration_is_no_state() -> None:
    assert capture_state(FedAvg(fraction_train=0.5)) == {}


def test_a_strategy_may_say_itself_what_to_keep() -> None:
    class Own(FedAvg):
        secret = 1

        def save_state(self) -> dict[str, Any]:
            return {"secret": self.secret}

        def load_state(self, state: dict[str, Any]) -> None:
            self.secret = state["secret"]

    before, after = Own(), Own()
    before.secret = 2
    restore_state(after, capture_state(before))
    assert after.secret == 2


def test_bytes_of_trees_come_back_as_bytes() -> None:
    before, after = FedAvg(), FedAvg()
    before.current_bst = b"tree"  # type: ignore[attr-defined]
    restore_state(after, capture_state(before))
    assert after.current_bst == b"tree"  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_keyword", [True, False])
def test_a_wrapped_method_sees_the_runs_own_round_and_its_own_start_is_kept(is_keyword: bool) -> None:
    class Own(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return server_round, list(replies)

        def start(self) -> Any:  # type: ignore[override]
            return self.aggregate_train(server_round=1, replies="x") if is_keyword else self.aggregate_train(1, "x")

    strategy = Own()
    seen: list[Any] = []
    _wrap(strategy, "aggregate_train", 4, before=lambda *a, **k: seen.append((a, k)), after=lambda *a: seen.append(a))
    assert strategy.start() == (5, ["x"])
    assert seen == [((5,), {"replies": "x"}) if is_keyword else ((5, "x"), {}), (5, (5, ["x"]))]


def test_our_own_strategy_wants_just_the_minimum() -> None:
    assert own_minimum(make_fedavg(3)) == 3
    assert own_minimum(None) == 1
