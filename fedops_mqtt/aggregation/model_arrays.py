"""Arrays out of whatever people call a model, and back into it, by what it offers and not by its type.

torch is imported for torch models only. Names are kept where the model has them; a plain list is named "0", "1", …
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedops_mqtt.aggregation.errors import ModelMismatchError, ModelTypeError
from fedops_mqtt.line.reply_check import count_nonfinite
from fedops_mqtt.store.tensor_file import Arrays

_METHODS = ("state_dict", "get_weights", "get_parameters")
"""PyTorch, Keras, and Flower's NumPyClient."""


def arrays_of(model: object) -> Arrays:
    """Return a model's arrays: a list or mapping of arrays, an ArrayRecord, or an object that returns one of them.

    Raises:
        ModelTypeError: it is something else.
    """
    for name in _METHODS:
        method = getattr(model, name, None)
        if callable(method):
            return arrays_of(method({}) if name == "get_parameters" else method())
    if isinstance(model, Mapping):
        return {str(name): _to_array(value) for name, value in model.items()}
    if isinstance(model, list | tuple):
        return {str(at): _to_array(value) for at, value in enumerate(model)}
    raise ModelTypeError(model)


def load_into(model: Any, arrays: Arrays) -> Any:
    """Return the model with these arrays in it: an object is changed in place, a list or mapping is made anew.

    Raises:
        ModelTypeError: it is nothing that arrays can be put into.
    """
    if callable(getattr(model, "load_state_dict", None)):
        from fedops_mqtt.model_types.torch_model import to_tensors

        model.load_state_dict(to_tensors(arrays))
        return model
    for name in ("set_weights", "set_parameters"):
        method = getattr(model, name, None)
        if callable(method):
            method(list(arrays.values()))
            return model
    if model is None or isinstance(model, Mapping):
        return dict(arrays)
    if isinstance(model, list | tuple):
        return list(arrays.values())
    raise ModelTypeError(model)


def check_same_shapes(source: str, found: Arrays, expected: Arrays) -> None:
    """Check that two models have the same arrays.

    Raises:
        ModelMismatchError: `found`, which came from `source`, is of another model.
    """
    differences = list(_differences(found, expected))
    if differences:
        raise ModelMismatchError(source, differences)


def nonfinite_in(arrays: Mapping[str, NDArray[Any]], begun: Mapping[str, NDArray[Any]]) -> str | None:
    """Return which array has NaN, or infinities where `begun` has none (a mask of them is part of the model)."""
    for name, array in arrays.items():
        if count := count_nonfinite(array, begun.get(name)):
            return f"array {name!r} has {count} values that are NaN or infinite"
    return None


def are_equal(first: Arrays, second: Arrays) -> bool:
    """Return whether two models are the same, name by name and value by value."""
    return first.keys() == second.keys() and all(is_equal(first[name], second[name]) for name in first)


def is_equal(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Return whether two arrays have the same shape and values; NaN is NaN."""
    return first.shape == second.shape and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def _differences(found: Arrays, expected: Arrays) -> Iterable[str]:
    for name in expected.keys() - found.keys():
        yield f"it has no {name!r}"
    for name in found.keys() - expected.keys():
        yield f"it has {name!r} too"
    for name in found.keys() & expected.keys():
        if found[name].shape != expected[name].shape and not (_is_row(found[name]) and _is_row(expected[name])):
            yield f"{name!r} is {found[name].shape} there and {expected[name].shape} here"


def _is_row(array: NDArray[Any]) -> bool:
    """A row of bytes (trees of XGBoost) is as long as the model has grown."""
    return array.dtype == np.uint8 and array.ndim == 1


def _to_array(value: Any) -> NDArray[Any]:
    """Return a tensor's or Flower Array's values; a tensor that is trained is detached first."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16; float32 holds it without loss, and that is what devices send (model_types.torch_model)
        value = value.float() if str(getattr(value, "dtype", "")) == "torch.bfloat16" else value
    if hasattr(value, "numpy"):
        value = value.numpy()
    return np.asarray(value)
