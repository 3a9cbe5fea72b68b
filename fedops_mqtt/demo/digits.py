"""The demo's data and model: scikit-learn's handwritten digits and a two-layer network in plain numpy.

Everything is drawn from fixed seeds: the same partition of the same data trains to the same arrays, everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
"""The model, float32: `hidden.weight` (64, 32), `hidden.bias` (32,), `output.weight` (32, 10), `output.bias` (10,)."""

NUM_LABELS = 10
_NUM_PIXELS = 64
_NUM_HIDDEN = 32
_MAX_PIXEL = 16.0
_NUM_TEST = 360
"""Images kept for the server's evaluation, a fifth of the 1797; no client ever sees them."""
_SEED = 7
_UNEVENNESS = 1.0
"""Concentration of the Dirichlet split by label: lower is more uneven; at 1 most clients hardly know some digit."""
_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Labelled images: `pixels` float32 of shape (n, 64) between 0 and 1, `labels` int64 of shape (n,)."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def load_test() -> Digits:
    """Return the images that the server evaluates the global model on."""
    digits = _load_all()
    return Digits(pixels=digits.pixels[:_NUM_TEST], labels=digits.labels[:_NUM_TEST])


def load_partition(partition: int, num_partitions: int) -> Digits:
    """Return one client's images; all partitions together are the training set, none of them is empty.

    Raises:
        ValueError: there is no such partition.
    """
    if not 0 <= partition < num_partitions:
        raise ValueError(f"partition {partition} of {num_partitions}: must be from 0 to {num_partitions - 1}")
    digits = _load_all()
    pixels, labels = digits.pixels[_NUM_TEST:], digits.labels[_NUM_TEST:]
    chosen = np.flatnonzero(_owners(labels, num_partitions) == partition)
    return Digits(pixels=pixels[chosen], labels=labels[chosen])


def initial_arrays() -> Arrays:
    """Return the untrained model."""
    rng = np.random.default_rng(_SEED)
    return {
        "hidden.weight": _he_normal(rng, _NUM_PIXELS, _NUM_HIDDEN),
        "hidden.bias": np.zeros(_NUM_HIDDEN, np.float32),
        "output.weight": _he_normal(rng, _NUM_HIDDEN, NUM_LABELS),
        "output.bias": np.zeros(NUM_LABELS, np.float32),
    }


def train(
    arrays: Mapping[str, NDArray[Any]], digits: Digits, *, epochs: int, learning_rate: float, seed: int
) -> tuple[Arrays, float]:
    """Return the model after `epochs` of stochastic gradient descent, and the loss of the last one."""
    model = {name: np.array(array) for name, array in arrays.items()}
    rng = np.random.default_rng(seed)
    loss = 0.0
    for _ in range(epochs):
        order = rng.permutation(len(digits))
        batches = [order[at : at + _BATCH] for at in range(0, len(order), _BATCH)]
        losses = [_step(model, digits.pixels[batch], digits.labels[batch], learning_rate) for batch in batches]
        loss = float(np.mean(losses))
    return model, loss


def evaluate(arrays: Mapping[str, NDArray[Any]], digits: Digits) -> tuple[float, float]:
    """Return `(loss, accuracy)` of the model on these images."""
    _, probabilities = _forward(arrays, digits.pixels)
    accuracy = float(np.mean(np.argmax(probabilities, axis=1) == digits.labels))
    return _cross_entropy(probabilities, digits.labels), accuracy


@cache
def _load_all() -> Digits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(_SEED).permutation(len(bunch.target))
    pixels = (bunch.data[order] / _MAX_PIXEL).astype(np.float32)
    return Digits(pixels=pixels, labels=bunch.target[order].astype(np.int64))


def _owners(labels: NDArray[np.int64], num_partitions: int) -> NDArray[np.int64]:
    """Return who owns each image: shares of every label drawn by themselves, and one image for everybody at least."""
    rng = np.random.default_rng(_SEED)
    owners = np.zeros(len(labels), np.int64)
    for label in range(NUM_LABELS):
        found = np.flatnonzero(labels == label)
        shares = rng.dirichlet([_UNEVENNESS] * num_partitions)
        owners[found] = np.searchsorted(np.cumsum(shares), np.linspace(0, 1, len(found), endpoint=False), side="right")
    owners = np.minimum(owners, num_partitions - 1)
    for partition in np.setdiff1d(np.arange(num_partitions), owners):
        largest = np.bincount(owners, minlength=num_partitions).argmax()
        owners[np.flatnonzero(owners == largest)[0]] = partition
    return owners


def _he_normal(rng: np.random.Generator, num_in: int, num_out: int) -> NDArray[np.float32]:
    return np.asarray(rng.normal(size=(num_in, num_out)) * np.sqrt(2 / num_in), dtype=np.float32)


def _forward(arrays: Mapping[str, NDArray[Any]], pixels: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    hidden = np.maximum(pixels @ arrays["hidden.weight"] + arrays["hidden.bias"], 0)
    scores = hidden @ arrays["output.weight"] + arrays["output.bias"]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, powers / powers.sum(axis=1, keepdims=True)


def _cross_entropy(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> float:
    likelihoods = probabilities[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.maximum(likelihoods, np.finfo(np.float32).tiny))))


def _step(model: Arrays, pixels: NDArray[np.float32], labels: NDArray[np.int64], learning_rate: float) -> float:
    """Change the model in place by one batch's gradient; return the loss before."""
    hidden, probabilities = _forward(model, pixels)
    loss = _cross_entropy(probabilities, labels)
    slope = probabilities
    slope[np.arange(len(labels)), labels] -= 1
    slope /= len(labels)
    hidden_slope = (slope @ model["output.weight"].T) * (hidden > 0)
    model["output.weight"] -= learning_rate * (hidden.T @ slope)
    model["output.bias"] -= learning_rate * slope.sum(axis=0)
    model["hidden.weight"] -= learning_rate * (pixels.T @ hidden_slope)
    model["hidden.bias"] -= learning_rate * hidden_slope.sum(axis=0)
    return loss
