"""PyTorch, as FedOps registers it: model, three loaders, `train_torch` and `test_torch`.

Arrays whose name has "bn" in it stay on the device, as FedOps has it (FedOps client_fl.FLClient.get_parameters).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
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

_KEPT = "bn"


class TorchAdapter:
    """A PyTorch model with its loaders and functions."""

    def __init__(self, registration: Mapping[str, Any], cfg: Any) -> None:
        self.model, self._train_torch, self._test_torch = take(registration, "model", "train_torch", "test_torch")
        self._train, self._test = take(registration, "train_loader", "test_loader")
        self._val = registration.get("val_loader")
        self._cfg = cfg

    def arrays(self) -> Arrays:
        """Return copies of what the model shares."""
        return shared_arrays(self.model)

    def load(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Take over the server's arrays; a server that shares all of a model's sends "bn" too, and is obeyed."""
        every = all_arrays(self.model)
        expected = every if len(arrays) == len(every) else shared_arrays(self.model)
        load_arrays(self.model, matched(expected, arrays))

    def train(self, plan: TrainPlan) -> Trained:
        """Train by the user's function, then test by it on training and validation data."""
        loader = self._train
        if "batch_size" in plan.hp:
            loader = torch.utils.data.DataLoader(loader.dataset, batch_size=int(plan.hp["batch_size"]), shuffle=True)
        tuned = {"hp": dict(plan.hp)} if takes(self._train_torch, "hp") else {}
        model = self._train_torch(self.model, loader, plan.num_epochs, self._cfg, **tuned)
        self.model = self.model if model is None else model
        val = None if self._val is None else self._tested(self._val)
        return Trained(num_examples=count(loader), metrics=train_metrics(self._tested(loader), val))

    def test(self, batch_size: int) -> Tested:
        """Test by the user's function."""
        return self._tested(self._test)

    def save(self, stem: Path) -> Path:
        """Save everything that the model has, "bn" too."""
        return save_arrays(stem, all_arrays(self.model))

    def _tested(self, loader: Any) -> Tested:
        return tested(self._test_torch(self.model, loader, self._cfg), count(loader))


def shared_arrays(model: Any) -> Arrays:
    """Return copies of a model's arrays without those that stay on the device."""
    return {name: array for name, array in all_arrays(model).items() if _KEPT not in name}


def all_arrays(model: Any) -> Arrays:
    """Return copies of all arrays of a model."""
    return {name: to_array(tensor) for name, tensor in model.state_dict().items()}


def load_arrays(model: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put arrays into a model by name; what is not among them stays as it is.

    Raises:
        RuntimeError: the model has no array of a name, or it has another shape.
    """
    unexpected = model.load_state_dict(to_tensors(arrays), strict=False).unexpected_keys
    if unexpected:
        raise RuntimeError(f"{type(model).__name__} has no {', '.join(unexpected)}")


def to_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Return copies of arrays as tensors."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a copy of a tensor; numpy has no bfloat16, which becomes float32."""
    plain = tensor.detach().cpu()
    return np.array(plain.float().numpy() if plain.dtype is torch.bfloat16 else plain.numpy())
