"""Plain numpy: the model is a list or dict of arrays, or an object with `get_weights` and `set_weights`.

Registered like PyTorch: `train_data`, `test_data`, `train_numpy(model, data, epochs, cfg)` and
`test_numpy(model, data, cfg) -> (loss, accuracy, metrics)`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedops_mqtt.model_types.model_type import (
    Arrays,
    Tested,
    Trained,
    TrainPlan,
    count,
    matched,
    save_arrays,
    take,
    takes,
    tested,
    train_metrics,
)


class NumpyAdapter:
    """Arrays with their data and functions; `train_numpy` returns the new model, or None if it changed it in place."""

    def __init__(self, registration: Mapping[str, Any], cfg: Any) -> None:
        self.model, self._train_numpy, self._test_numpy = take(registration, "model", "train_numpy", "test_numpy")
        self._train, self._test = take(registration, "train_data", "test_data")
        self._cfg = cfg

    def arrays(self) -> Arrays:
        """Return copies of the model's arrays."""
        return shared_arrays(self.model)

    def load(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Take over the server's arrays."""
        self.model = with_arrays(self.model, matched(shared_arrays(self.model), arrays))

    def train(self, plan: TrainPlan) -> Trained:
        """Train by the user's function, then test by it on the training data."""
        tuned = {"hp": dict(plan.hp)} if takes(self._train_numpy, "hp") else {}
        model = self._train_numpy(self.model, self._train, plan.num_epochs, self._cfg, **tuned)
        self.model = self.model if model is None else model
        return Trained(num_examples=count(self._train), metrics=train_metrics(self._tested(self._train), None))

    def test(self, batch_size: int) -> Tested:
        """Test by the user's function."""
        return self._tested(self._test)

    def save(self, stem: Path) -> Path:
        """Save the arrays."""
        return save_arrays(stem, self.arrays())

    def _tested(self, data: Any) -> Tested:
        return tested(self._test_numpy(self.model, data, self._cfg), count(data))


def shared_arrays(model: Any) -> Arrays:
    """Return copies of a model's arrays; those of a list are named by their place."""
    if callable(getattr(model, "get_weights", None)):
        model = model.get_weights()
    named = model.items() if isinstance(model, Mapping) else enumerate(model)
    return {str(name): np.array(array) for name, array in named}


def with_arrays(model: Any, arrays: Arrays) -> Any:
    """Return the model with these arrays in it; they are copies that it may change."""
    own = {name: np.array(array) for name, array in arrays.items()}
    if callable(getattr(model, "set_weights", None)):
        model.set_weights(list(own.values()))
        return model
    return own if isinstance(model, Mapping) else list(own.values())
