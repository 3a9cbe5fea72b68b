"""The server's own evaluation of the global model, from what FedOps hands to FLServer or a function of the user's."""

from collections.abc import Callable, Mapping
from typing import Any

from fedops_mqtt.server.model_arrays import load_into
from fedops_mqtt.server.rounds import Evaluate
from fedops_mqtt.server.tensor_file import Arrays

TestTorch = Callable[[Any, Any, Any], tuple[float, float, Mapping[str, Any] | None]]
"""FedOps' `test_torch(model, gl_val_loader, cfg) -> (loss, accuracy, metrics)`."""


def make_evaluate(
    model: Any, *, cfg: Any, gl_val_loader: Any, x_val: Any, y_val: Any, test_torch: TestTorch | None
) -> Evaluate | None:
    """Return how FedOps evaluates this model; None where it was given nothing to evaluate with."""
    if test_torch is not None:
        return _with_test_torch(model, test_torch, gl_val_loader, cfg)
    if x_val is not None and callable(getattr(model, "evaluate", None)):
        return _with_own_method(model, x_val, y_val)
    return None


def _with_test_torch(model: Any, test_torch: TestTorch, gl_val_loader: Any, cfg: Any) -> Evaluate:
    def evaluate(round_: int, arrays: Arrays) -> Mapping[str, Any]:
        loss, accuracy, metrics = test_torch(load_into(model, arrays), gl_val_loader, cfg)
        return {"loss": loss, "accuracy": accuracy, **(metrics or {})}

    return evaluate


def _with_own_method(model: Any, x_val: Any, y_val: Any) -> Evaluate:
    """Keras: `model.evaluate(x, y)` gives loss and accuracy (FedOps server.app, Tensorflow)."""

    def evaluate(round_: int, arrays: Arrays) -> Mapping[str, Any]:
        loss, accuracy = load_into(model, arrays).evaluate(x_val, y_val, verbose=0)
        return {"loss": loss, "accuracy": accuracy}

    return evaluate
