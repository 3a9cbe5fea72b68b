"""A small PyTorch network, and how it is trained and tested, as FedOps' tasks have it."""

import torch
from torch.utils.data import DataLoader, TensorDataset


def make_model():
    """Return the untrained network, the same one each time."""
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def make_loader(x, y, batch_size, shuffle=False):
    """Return a loader of these images."""
    return DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=batch_size, shuffle=shuffle)


def train_torch(model, train_loader, epochs, cfg, hp=None):
    """Train the network in place and return it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=(hp or {}).get("learning_rate", 0.2))
    model.train()
    for _ in range(epochs):
        for x, y in train_loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def test_torch(model, loader, cfg):
    """Return loss, accuracy and no further metrics."""
    model.eval()
    loss = correct = total = 0.0
    with torch.no_grad():
        for x, y in loader:
            scores = model(x)
            loss += torch.nn.functional.cross_entropy(scores, y, reduction="sum").item()
            correct += (scores.argmax(dim=1) == y).sum().item()
            total += len(y)
    return loss / total, correct / total, None
