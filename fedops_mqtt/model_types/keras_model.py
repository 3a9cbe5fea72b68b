"""Keras 3 on any backend, registered as FedOps' "Tensorflow" is: a compiled model, its training and test arrays.

Keras itself is not imported here: the model that was registered brings it.
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
    matched,
    save_arrays,
    take,
)
from fedops_mqtt.protocol import numbers_in
from fedops_mqtt.runtime.task_config import entry


class KerasAdapter:
    """A compiled Keras model with its arrays of data."""

    def __init__(self, registration: Mapping[str, Any], cfg: Any) -> None:
        self.model, self._x_train, self._y_train = take(registration, "model", "x_train", "y_train")
        self._x_test, self._y_test = take(registration, "x_test", "y_test")
        split = registration.get("validation_split")
        self._validation_split = float(entry(cfg, "dataset.validation_split", 0.0) if split is None else split)

    def arrays(self) -> Arrays:
        """Return copies of the model's weights."""
        return shared_arrays(self.model)

    def load(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Take over the server's weights."""
        self.model.set_weights(list(matched(shared_arrays(self.model), arrays).values()))

    def train(self, plan: TrainPlan) -> Trained:
        """Fit; the last epoch's numbers are the round's."""
        if "learning_rate" in plan.hp:
            self.model.optimizer.learning_rate = plan.hp["learning_rate"]
        history = self.model.fit(
            self._x_train,
            self._y_train,
            batch_size=int(plan.hp.get("batch_size", plan.batch_size)),
            epochs=plan.num_epochs,
            validation_split=self._validation_split,
            verbose=0,
        )
        last = numbers_in({name: values[-1] for name, values in history.history.items()})
        metrics = {name if name.startswith("val_") else f"train_{name}": value for name, value in last.items()}
        return Trained(num_examples=len(self._x_train), metrics=metrics)

    def test(self, batch_size: int) -> Tested:
        """Evaluate on the test data."""
        found = numbers_in(
            self.model.evaluate(self._x_test, self._y_test, batch_size=batch_size, verbose=0, return_dict=True)
        )
        loss, accuracy = found.pop("loss"), found.pop("accuracy", 0.0)
        return Tested(loss=loss, accuracy=accuracy, num_examples=len(self._x_test), metrics=found)

    def save(self, stem: Path) -> Path:
        """Save the weights."""
        return save_arrays(stem, shared_arrays(self.model))


def shared_arrays(model: Any) -> Arrays:
    """Return copies of a model's weights, named by their place."""
    return {str(at): np.array(array) for at, array in enumerate(model.get_weights())}
