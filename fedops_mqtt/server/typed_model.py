"""FedOps' model types on the server: what of the program's model is shared, and how arrays go back into it.

The same adapters as on the device are used, so both sides mean the same arrays in the same order.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedops_mqtt.aggregation.model_arrays import arrays_of, load_into
from fedops_mqtt.aggregation.rounds import Evaluate
from fedops_mqtt.model_types.local_models import put_arrays
from fedops_mqtt.runtime.task_config import entry
from fedops_mqtt.server.server_utils import load_initial_parameters_from_shape
from fedops_mqtt.store.tensor_file import Arrays

Load = Callable[[Any, Arrays], Any]

PARAMETER_SHAPES = Path("parameter_shapes.json")
"""What FedOps' server of a Hugging Face task has in the place of the model (FedOps server.app)."""


def shared_arrays(
    model: Any, model_type: str, *, cfg: Any = None, x_val: Any = None, y_val: Any = None
) -> Arrays | None:
    """Return what of a model is shared; None without a model.

    Raises:
        ModelTypeError: it is nothing that arrays can be taken from.
        FileNotFoundError: a Hugging Face task without a model has no `parameter_shapes.json` either.
    """
    if model_type == "Huggingface" and not hasattr(model, "peft_config"):
        shapes = load_initial_parameters_from_shape(str(PARAMETER_SHAPES)) if model is None else model
        return arrays_of(shapes)
    if model is None:
        return None
    match model_type:
        case "Pytorch" if hasattr(model, "state_dict"):
            from fedops_mqtt.model_types import torch_model

            return torch_model.shared_arrays(model)
        case "Huggingface":
            from fedops_mqtt.model_types import peft_model

            return peft_model.shared_arrays(model)
        case "Tensorflow" | "Keras":  # on torch a Keras model has a state_dict too, with other arrays
            from fedops_mqtt.model_types import keras_model

            return keras_model.shared_arrays(model)
        case "Sklearn":
            return _learned(model, cfg, x_val, y_val)
    return arrays_of(model)


_OWN_METHODS = {
    "Pytorch": "state_dict",
    "Huggingface": "peft_config",
    "Tensorflow": "set_weights",
    "Keras": "set_weights",
    "Sklearn": "partial_fit",
}
"""What a model of each type has that is not just a list or mapping of arrays."""


def loader_of(model_type: str) -> Load:
    """Return what puts shared arrays back into a model of this type."""

    def load(model: Any, arrays: Arrays) -> Any:
        if hasattr(model, _OWN_METHODS.get(model_type, "")):
            return put_arrays(model_type, model, arrays)
        return load_into(model, arrays)

    return load


def _learned(model: Any, cfg: Any, x_val: Any, y_val: Any) -> Arrays:
    from fedops_mqtt.model_types import sklearn_model

    if x_val is not None:
        num_classes = entry(cfg, "model.output_size") if cfg is not None else None
        labels = np.arange(int(num_classes)) if num_classes else np.unique(y_val)
        sklearn_model.prepare(model, np.shape(x_val)[1], labels)
    return sklearn_model.shared_arrays(model)


TestTorch = Callable[[Any, Any, Any], tuple[float, float, Mapping[str, Any] | None]]
"""FedOps' `test_torch(model, gl_val_loader, cfg) -> (loss, accuracy, metrics)`."""
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
