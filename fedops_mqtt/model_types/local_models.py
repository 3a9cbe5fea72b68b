"""Arrays put into models of each type; local models read back into them, by name, and never by unpickling."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def load_local_model(model_type: str, path: Path, model: Any) -> Any:
    """Return `model` with the arrays of a local model in it.

    Raises:
        ValueError: the file is damaged or of another model, or the model type is not kept in such files.
    """
    if path.is_dir():
        path /= "adapter_model.safetensors"
    arrays = _read_pth(path) if path.suffix == ".pth" else _read(path)
    try:
        return put_arrays(model_type, model, arrays)
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is of another model: {error}") from error


def put_arrays(model_type: str, model: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return a model of this type with these arrays in it; one that is not a list or mapping is changed in place."""
    match model_type:
        case "Pytorch":
            from fedops_mqtt.model_types import torch_model

            torch_model.load_arrays(model, arrays)
        case "Tensorflow" | "Keras":
            model.set_weights([arrays[str(at)] for at in range(len(arrays))])
        case "Huggingface":
            from fedops_mqtt.model_types import peft_model

            peft_model.load_arrays(model, arrays)
        case "Sklearn":
            from fedops_mqtt.model_types import sklearn_model

            sklearn_model.load_arrays(model, arrays)
        case _:
            from fedops_mqtt.model_types import numpy_model

            return numpy_model.with_arrays(model, dict(arrays))
    return model


def _read(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _read_pth(path: Path) -> dict[str, NDArray[Any]]:
    import torch

    from fedops_mqtt.model_types.torch_model import to_array

    try:
        return {name: to_array(tensor) for name, tensor in torch.load(path, weights_only=True).items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or more than weights: {error}") from error
