"""scikit-learn's handwritten digits, dealt out: device `partition` of `num_partitions` has every n-th image."""

import numpy as np
from sklearn.datasets import load_digits

NUM_TEST = 360


def load(partition: int | None = None, num_partitions: int = 1):
    """Return `(x, y)` of a device; without a partition, the images that no device has."""
    digits = load_digits()
    order = np.random.default_rng(7).permutation(len(digits.target))
    x, y = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int64)
    if partition is None:
        return x[:NUM_TEST], y[:NUM_TEST]
    return x[NUM_TEST:][partition::num_partitions], y[NUM_TEST:][partition::num_partitions]


def split(x, y):
    """Keep a fifth of a device's images for its own evaluation."""
    at = len(x) // 5
    return (x[at:], y[at:]), (x[:at], y[:at])
