"""The network, and FedOps' three functions of it."""

import torch
from torch import nn


class MNISTClassifier(nn.Module):
    """Two convolutions and a line."""

    def __init__(self, output_size):
        super().__init__()
        torch.manual_seed(42)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 7 * 7, output_size),
        )

    def forward(self, x):
        """Return a score for each digit."""
        return self.layers(x)


def train_torch():
    """Return how a model is trained."""

    def custom_train_torch(model, train_loader, epochs, cfg, hp=None):
        optimizer = torch.optim.SGD(model.parameters(), lr=cfg.learning_rate, momentum=0.9)
        model.train()
        for _ in range(epochs):
            for images, labels in train_loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
        return model

    return custom_train_torch


def test_torch():
    """Return how a model is tested."""

    def custom_test_torch(model, test_loader, cfg):
        model.eval()
        loss = correct = total = 0.0
        with torch.no_grad():
            for images, labels in test_loader:
                scores = model(images)
                loss += nn.functional.cross_entropy(scores, labels, reduction="sum").item()
                correct += (scores.argmax(dim=1) == labels).sum().item()
                total += len(labels)
        return loss / total, correct / total, {"seen": total}

    return custom_test_torch
