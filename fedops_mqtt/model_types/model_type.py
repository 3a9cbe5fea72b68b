"""What every model type can do, and the choice of the one that a registration asks for.

A registration is FedOps' `fl_task`: a dict of the model, its name, its data, and the functions that train and test it.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedops_mqtt.protocol import numbers_in

Arrays = dict[str, NDArray[Any]]
"""What a model shares: arrays by name, in the model's own order."""


class RegistrationError(ValueError):
    """A registration lacks what its model type needs."""


class SharedArraysError(ValueError):
    """Arrays that came from the FL server are of another model."""

    def __init__(self, expected: Arrays, found: Sequence[NDArray[Any]]) -> None:
        here = ", ".join(f"{name}{list(array.shape)}" for name, array in expected.items())
        there = ", ".join(str(list(array.shape)) for array in found)
        super().__init__(f"the FL server's model has {len(found)} arrays ({there}); this client's has {here}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """One round's training, as the FL server asked for it."""

    batch_size: int
    num_epochs: int
    hp: Mapping[str, float]
    """What a tuning strategy chose, by FedOps' names without `hp_`; empty where there is no tuning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training gave; metrics are named `train_…` and `val_…`, as FedOps names them."""

    num_examples: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """What an evaluation gave."""

    loss: float
    accuracy: float
    num_examples: int
    metrics: dict[str, float]


class Adapter(Protocol):
    """One registered model with its data."""

    def arrays(self) -> Arrays:
        """Return copies of what the model shares."""
        ...

    def load(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Take over the server's arrays, in the order of `arrays`.

        Raises:
            SharedArraysError: they are of another model.
        """
        ...

    def train(self, plan: TrainPlan) -> Trained:
        """Train on this device's data."""
        ...

    def test(self, batch_size: int) -> Tested:
        """Evaluate on this device's data."""
        ...

    def save(self, stem: Path) -> Path:
        """Save the model beside others, under `stem` with an ending of its own; returns where."""
        ...


_ADAPTERS = {
    "Pytorch": ("torch_model", "TorchAdapter"),
    "Tensorflow": ("keras_model", "KerasAdapter"),
    "Keras": ("keras_model", "KerasAdapter"),
    "Huggingface": ("peft_model", "PeftAdapter"),
    "Sklearn": ("sklearn_model", "SklearnAdapter"),
    "Numpy": ("numpy_model", "NumpyAdapter"),
}
"""Model types, FedOps' three and ours, and where each is."""


def make_adapter(model_type: str, registration: Mapping[str, Any], cfg: Any) -> Adapter:
    """Return the adapter of a registered model.

    Raises:
        RegistrationError: there is no such model type, or something is missing in the registration.
        ModuleNotFoundError: the framework is not installed; names which extra brings it.
    """
    if model_type not in _ADAPTERS:
        raise RegistrationError(f"model_type is {model_type!r}, expected one of {', '.join(_ADAPTERS)}")
    module, name = _ADAPTERS[model_type]
    adapter: Adapter = getattr(import_module(f"{__package__}.{module}"), name)(registration, cfg)
    return adapter


def take(registration: Mapping[str, Any], *names: str) -> list[Any]:
    """Return entries of a registration.

    Raises:
        RegistrationError: one is missing; names all that are.
    """
    missing = [name for name in names if registration.get(name) is None]
    if missing:
        raise RegistrationError(f"fl_task has no {', '.join(missing)}; it has {', '.join(registration) or 'nothing'}")
    return [registration[name] for name in names]


def matched(expected: Arrays, found: Sequence[NDArray[Any]]) -> Arrays:
    """Return the server's arrays under this model's names.

    Raises:
        SharedArraysError: there are more or fewer, or one has another shape.
    """
    shapes = [tuple(array.shape) for array in expected.values()]
    if shapes != [tuple(array.shape) for array in found]:
        raise SharedArraysError(expected, found)
    return dict(zip(expected, found, strict=True))


def tested(result: Sequence[Any], num_examples: int) -> Tested:
    """Return the content of FedOps' `(loss, accuracy, metrics)`; the metrics may be None or left out."""
    loss, accuracy, *rest = result
    return Tested(
        loss=float(loss),
        accuracy=float(accuracy),
        num_examples=num_examples,
        metrics=numbers_in(rest[0] if rest else None),
    )


def train_metrics(train: Tested, val: Tested | None) -> dict[str, float]:
    """Return FedOps' metrics of a training: `train_loss`, `train_accuracy`, …, `val_loss`, …."""
    found: dict[str, float] = {}
    for prefix, each in (("train_", train), ("val_", val)):
        if each is not None:
            found |= {
                f"{prefix}loss": each.loss,
                f"{prefix}accuracy": each.accuracy,
                **numbers_in(each.metrics, prefix),
            }
    return found


def count(data: Any) -> int:
    """Return how many examples a loader or a data set has."""
    return len(data.dataset) if hasattr(data, "dataset") else len(data)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function can be called with this keyword; older FedOps tasks take fewer."""
    parameters = inspect.signature(function).parameters.values()
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in parameters)


def save_arrays(stem: Path, arrays: Arrays) -> Path:
    """Write arrays as safetensors, whole or not at all; two processes with one folder do not meet on the way."""
    from safetensors.numpy import save_file

    path = stem.with_name(f"{stem.name}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, fresh)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return path
