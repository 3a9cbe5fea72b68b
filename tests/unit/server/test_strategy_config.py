"""Strategies out of configurations: FedOps' `server.strategy` with `_target_`, at any depth, with what FedOps adds."""

from typing import Any

import numpy as np
import pytest
from flwr.common import parameters_to_ndarrays
from flwr.server.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg, FedProx
from flwr.serverapp import strategy as messages
from omegaconf import OmegaConf

from fedops_mqtt.aggregation.errors import ServerConfigError
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.server.app import FLServer
from fedops_mqtt.server.strategy_config import instantiate, strategy_of

CLASSIC = "flwr.server.strategy"


def make(described: Any, initial: Any = None) -> Any:
    return strategy_of(
        {"server": {"strategy": described}},
        initial=initial,
        fit_config=lambda rnd: {"rnd": rnd},
        evaluate_config=lambda rnd: {"batch_size": rnd},
    )


def test_fedops_own_configuration_makes_its_strategy() -> None:
    cfg = OmegaConf.create(
        f"""
        share: 0.5
        server:
          strategy:
            _target_: {CLASSIC}.FedAvg
            fraction_fit: ${{share}}
            min_fit_clients: 1
            min_available_clients: 1
        """
    )
    made = strategy_of(
        cfg,
        initial={"w": np.arange(3.0)},
        fit_config=lambda rnd: {"rnd": rnd},
        evaluate_config=lambda rnd: {"batch_size": rnd},
    )
    assert isinstance(made, FedAvg)
    assert (made.fraction_fit, made.min_fit_clients) == (0.5, 1)
    assert made.on_fit_config_fn is not None
    assert made.on_evaluate_config_fn is not None
    assert made.on_fit_config_fn(3) == {"rnd": 3}
    assert made.initial_parameters is not None
    np.testing.assert_array_equal(parameters_to_ndarrays(made.initial_parameters)[0], [0, 1, 2])


def test_a_strategy_gets_what_it_takes_through_the_classes_above_it() -> None:
    assert isinstance(make({"_target_": f"{CLASSIC}.FedProx", "proximal_mu": 0.1}), FedProx)
    adam = make({"_target_": f"{CLASSIC}.FedAdam", "eta": 0.2}, {"w": np.zeros(1)})
    assert isinstance(adam, FedAdam)
    assert adam.on_fit_config_fn(1) == {"rnd": 1}


def test_a_described_argument_is_made_too() -> None:
    inner = {"_target_": f"{CLASSIC}.FedAvg", "min_fit_clients": 1}
    outer = {"strategy": inner, "noise_multiplier": 1.0, "clipping_norm": 1.0, "num_sampled_clients": 2}
    made = make({"_target_": f"{CLASSIC}.DifferentialPrivacyServerSideFixedClipping", **outer})
    assert isinstance(made, DifferentialPrivacyServerSideFixedClipping)
    assert isinstance(made.strategy, FedAvg)


def test_a_message_strategy_can_be_described_too() -> None:
    made = make({"_target_": "flwr.serverapp.strategy.FedAvg", "min_train_nodes": 1})
    assert isinstance(made, messages.FedAvg)


def test_partial_and_positional_arguments() -> None:
    assert instantiate({"a": {"_target_": "builtins.dict", "b": [1, {"_target_": "builtins.str", "_args_": [2]}]}}) == {
        "a": {"b": [1, "2"]}
    }
    half = instantiate({"_target_": "builtins.dict", "_partial_": True, "a": 1})
    assert half(b=2) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("described", "problem"),
    [
        ({"_target_": "no.such.Module"}, "no module 'no'"),
        ({"_target_": f"{CLASSIC}.NoSuch"}, "has no 'NoSuch'"),
        ({"_target_": f"{CLASSIC}.FedAvg", "colour": 1}, "does not take .*colour"),
        ({"_target_": "builtins.dict"}, "no strategy"),
    ],
)
def test_a_strategy_that_cannot_be_made_is_reported(described: Any, problem: str) -> None:
    with pytest.raises(ServerConfigError, match=problem):
        make(described)


def test_a_server_takes_its_strategy_and_task_as_fedops_does(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK_ID", "mnist")
    path = tmp_path / "config.yaml"
    path.write_text(
        f"batch_size: 8\nnum_epochs: 2\nnum_rounds: 4\nserver:\n  strategy:\n    _target_: {CLASSIC}.FedAvg\n"
    )
    server = FLServer(str(path), [np.zeros(2)], "net", "Numpy", settings=ServerSettings(store=str(tmp_path)))
    assert server.task_id == "mnist"
    assert isinstance(server.strategy, FedAvg)
    assert server.strategy.on_fit_config_fn is not None
    assert server.strategy.on_evaluate_config_fn is not None
    assert server.strategy.on_fit_config_fn(1) == {"batch_size": 8, "local_epochs": 2, "num_rounds": 4}
    assert server.strategy.on_evaluate_config_fn(1) == {"batch_size": 8}
