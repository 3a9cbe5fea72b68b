"""Softmax regression in plain numpy: a model is a list of two arrays."""

import numpy as np


def make_model():
    """Return the untrained model."""
    return [np.zeros((64, 10)), np.zeros(10)]


def train_numpy(model, data, epochs, cfg):
    """Return the model after some epochs of gradient descent."""
    x, y = data.x, data.y
    weights, bias = (np.array(array) for array in model)
    for _ in range(epochs):
        for at in range(0, len(x), cfg.batch_size):
            batch, labels = x[at : at + cfg.batch_size], y[at : at + cfg.batch_size]
            slope = probabilities([weights, bias], batch)
            slope[np.arange(len(labels)), labels] -= 1
            weights -= 0.5 * batch.T @ slope / len(labels)
            bias -= 0.5 * slope.mean(axis=0)
    return [weights, bias]


def test_numpy(model, data, cfg):
    """Return loss, accuracy and no further metrics."""
    found = probabilities(model, data.x)
    loss = -np.log(np.maximum(found[np.arange(len(data.y)), data.y], 1e-12)).mean()
    return float(loss), float((found.argmax(axis=1) == data.y).mean()), None


def probabilities(model, x):
    """Return how likely each digit is, shape (n, 10)."""
    scores = x @ model[0] + model[1]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Images:
    """Images with their labels."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)
