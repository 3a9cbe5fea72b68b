from typing import Any

import pytest
from flwr.server import strategy as classic
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg

from fedops_mqtt.aggregation.follow import wrap_round
from fedops_mqtt.aggregation.strategy import count_on, make_fedavg, own_minimum


@pytest.mark.parametrize("is_keyword", [True, False])
def test_a_wrapped_method_gets_the_runs_own_round_and_its_own_start_is_kept(is_keyword: bool) -> None:
    class Own(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return server_round, list(replies)

        def start(self) -> Any:  # type: ignore[override]
            return self.aggregate_train(server_round=1, replies="x") if is_keyword else self.aggregate_train(1, "x")

    strategy = Own()
    seen: list[Any] = []
    wrap_round(
        strategy,
        "aggregate_train",
        lambda round_: round_ + 4,
        before=lambda *a, **k: seen.append((a, k)),
        after=lambda *a: seen.append(a),
    )
    assert strategy.start() == (5, ["x"])
    assert seen == [((5,), {"replies": "x"}) if is_keyword else ((5, "x"), {}), (5, (5, ["x"]))]


def test_only_flowers_own_aggregation_counts_on_inside_a_wrapper_too() -> None:
    class Own(classic.FedAdam):
        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            return super().aggregate_fit(server_round, results, failures)

    flowers = FedAdam()
    wrapper = DifferentialPrivacyServerSideFixedClipping(flowers, 0, 1, 2)
    undo = count_on(wrapper, 2)
    assert "aggregate_train" in vars(flowers)
    assert "aggregate_train" not in vars(wrapper)
    undo()
    assert "aggregate_train" not in vars(flowers)
    from flwr.common import ndarrays_to_parameters

    own = Own(initial_parameters=ndarrays_to_parameters([]))
    count_on(own, 2)
    assert "aggregate_fit" not in vars(own)


def test_our_own_strategy_wants_just_the_minimum() -> None:
    assert own_minimum(make_fedavg(3)) == 3
    assert own_minimum(None) == 1
