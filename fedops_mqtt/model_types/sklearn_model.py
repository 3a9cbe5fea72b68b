"""scikit-learn estimators that learn in steps: linear ones (`coef_`, `intercept_`) and multi-layer perceptrons.

Registered with `x_train`, `y_train`, `x_test`, `y_test`, and `classes`: one device may never see some label.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.base import is_classifier

from fedops_mqtt.model_types.model_type import (
    Arrays,
    RegistrationError,
    Tested,
    Trained,
    TrainPlan,
    matched,
    save_arrays,
    take,
    train_metrics,
)
from fedops_mqtt.runtime.task_config import entry

_LINEAR = ("coef_", "intercept_")
_LAYERED = ("coefs_", "intercepts_")


class SklearnAdapter:
    """An estimator with `partial_fit`, and its data; without `classes` it has those of `cfg.model.output_size`."""

    def __init__(self, registration: Mapping[str, Any], cfg: Any) -> None:
        self.model, self._x_train, self._y_train = take(registration, "model", "x_train", "y_train")
        self._x_test, self._y_test = take(registration, "x_test", "y_test")
        classes = registration.get("classes")
        if classes is None and (num_classes := entry(cfg, "model.output_size")):
            classes = np.arange(int(num_classes))
        self._x_train, self._x_test = np.asarray(self._x_train, np.float64), np.asarray(self._x_test, np.float64)
        prepare(self.model, np.shape(self._x_train)[1], classes)

    def arrays(self) -> Arrays:
        """Return copies of what the estimator has learned."""
        return shared_arrays(self.model)

    def load(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Take over what the server's estimator has learned."""
        load_arrays(self.model, matched(shared_arrays(self.model), arrays))

    def train(self, plan: TrainPlan) -> Trained:
        """Learn from all examples once an epoch."""
        for _ in range(plan.num_epochs):
            self.model.partial_fit(self._x_train, self._y_train)
        tested = self._tested(self._x_train, self._y_train)
        return Trained(num_examples=len(self._x_train), metrics=train_metrics(tested, None))

    def test(self, batch_size: int) -> Tested:
        """Evaluate on the test data."""
        return self._tested(self._x_test, self._y_test)

    def save(self, stem: Path) -> Path:
        """Save what the estimator has learned."""
        return save_arrays(stem, self.arrays())

    def _tested(self, x: Any, y: Any) -> Tested:
        loss, score = loss_and_score(self.model, x, y)
        return Tested(loss=loss, accuracy=score, num_examples=len(x), metrics={})


def prepare(model: Any, num_features: int, classes: Any) -> None:
    """Give an estimator that has learned nothing its shapes; linear ones start at zero, others as they begin.

    Raises:
        RegistrationError: it cannot learn in steps, or is a classifier without classes.
    """
    if not callable(getattr(model, "partial_fit", None)):
        raise RegistrationError(f"{type(model).__name__} has no partial_fit; SGDClassifier and MLPClassifier have")
    if _fields(model):
        return
    if classes is None and is_classifier(model):
        raise RegistrationError("a classifier needs all classes: add classes=[0, 1, …] to fl_task")
    labels = np.asarray(classes) if is_classifier(model) else np.zeros(1)
    known = {"classes": labels} if is_classifier(model) else {}
    begin = getattr(model, "random_state", None)
    model.partial_fit(np.zeros((len(labels), num_features)), labels, **known)
    if hasattr(model, "coef_"):
        load_arrays(model, {name: np.zeros_like(array) for name, array in shared_arrays(model).items()})
        if hasattr(model, "t_"):
            model.t_ = 1.0
    model.random_state = begin


def shared_arrays(model: Any) -> Arrays:
    """Return copies of what an estimator has learned; layers are named `coefs_.0` and so on."""
    found: Arrays = {}
    for name in _fields(model):
        value = getattr(model, name)
        if isinstance(value, list):
            found |= {f"{name}.{at}": np.array(array) for at, array in enumerate(value)}
        else:
            found[name] = np.array(value)
    return found


def load_arrays(model: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put arrays into an estimator in place: its optimiser may hold on to them."""
    for name, array in arrays.items():
        field, _, at = name.partition(".")
        target = getattr(model, field)
        (target[int(at)] if at else target)[...] = array


def loss_and_score(model: Any, x: Any, y: Any) -> tuple[float, float]:
    """Return a classifier's zero-one loss or log loss and accuracy, a regressor's mean squared error and R²."""
    x = np.asarray(x, np.float64)  # that of what an estimator learns; it refuses to mix
    score = float(model.score(x, y))
    if not is_classifier(model):
        return float(metrics.mean_squared_error(y, model.predict(x))), score
    try:
        probabilities = model.predict_proba(x)
    except AttributeError:  # a hinge loss has no probabilities
        return 1.0 - score, score
    return float(metrics.log_loss(y, probabilities, labels=model.classes_)), score


def _fields(model: Any) -> tuple[str, ...]:
    for fields in (_LINEAR, _LAYERED):
        if all(getattr(model, name, None) is not None for name in fields):
            return fields
    return ()
