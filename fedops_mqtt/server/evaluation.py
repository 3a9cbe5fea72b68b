"""The server's own evaluation of the global model, from what FedOps hands to FLServer or a function of the user's."""

from collections.abc import Callable, Mapping
from typing import Any

from fedops_mqtt.aggregation.model_arrays import load_into
from fedops_mqtt.aggregation.rounds import Evaluate
from fedops_mqtt.store.tensor_file import Arrays

TestTorch = Callable[[Any, Any, Any], tuple[float, float, Mapping[str, Any] | None]]
"""FedOps' `test_torch(model, gl_val_loader, cfg) -> (loss, accuracy, metrics)`."""
Load = Callable[[Any, Arrays], Any]
Measure = Callable[[Any, Any, Any], tuple[float, float]]


def make_evaluate(
    model: Any,
    *,
    cfg: Any,
    gl_val_loader: Any,
    x_val: Any,
    y_val: Any,
    test_torch: TestTorch | None,
    load: Load = load_into,
) -> Evaluate | None:
    """Return how FedOps evaluates this model; None where it was given nothing to evaluate with.

    `load` puts the global model's arrays into the model.
    """
    if test_torch is not None:

        def with_test_torch(round_: int, arrays: Arrays) -> Mapping[str, Any]:
            loss, accuracy, metrics = test_torch(load(model, arrays), gl_val_loader, cfg)
            return {"loss": loss, "accuracy": accuracy, **(metrics or {})}

        return with_test_torch
    measure = _measure_of(model)
    if x_val is None or measure is None:
        return None

    def with_own_data(round_: int, arrays: Arrays) -> Mapping[str, Any]:
        loss, accuracy = measure(load(model, arrays), x_val, y_val)
        return {"loss": loss, "accuracy": accuracy}

    return with_own_data


def _measure_of(model: Any) -> Measure | None:
    """Return what gives loss and accuracy: Keras' own method (FedOps server.app), or scikit-learn's score."""
    if callable(getattr(model, "evaluate", None)):
        return _by_own_method
    if callable(getattr(model, "score", None)):
        return _by_score
    return None


def _by_own_method(model: Any, x: Any, y: Any) -> tuple[float, float]:
    loss, accuracy, *_ = model.evaluate(x, y, verbose=0)
    return loss, accuracy


def _by_score(model: Any, x: Any, y: Any) -> tuple[float, float]:
    from fedops_mqtt.model_types.sklearn_model import loss_and_score

    return loss_and_score(model, x, y)
