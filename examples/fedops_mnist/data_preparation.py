"""Digits of MNIST's size without a download: scikit-learn's 8 × 8 images, blown up to 28 × 28."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

NUM_TEST = 360


def load_partition(dataset, validation_split, batch_size, partition=0, num_clients=1):
    """Return a device's training, validation and test loaders."""
    images, labels = _all()
    mine = TensorDataset(images[NUM_TEST:][partition::num_clients], labels[NUM_TEST:][partition::num_clients])
    num_val = int(len(mine) * validation_split)
    parts = random_split(mine, [len(mine) - 2 * num_val, num_val, num_val], torch.Generator().manual_seed(42))
    return tuple(DataLoader(part, batch_size=batch_size) for part in parts)


def gl_model_torch_validation(batch_size):
    """Return the loader of the images that no device has."""
    images, labels = _all()
    return DataLoader(TensorDataset(images[:NUM_TEST], labels[:NUM_TEST]), batch_size=batch_size)


def _all():
    digits = load_digits()
    order = np.random.default_rng(42).permutation(len(digits.target))
    small = (digits.images[order] / 16).astype(np.float32)
    images = np.pad(np.kron(small, np.ones((1, 3, 3), np.float32)), ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(images[:, None]), torch.from_numpy(digits.target[order].astype(np.int64))
