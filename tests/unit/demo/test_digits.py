import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from fedops_mqtt.demo import digits

NUM_TRAINING_IMAGES = 1437


def federate(num_clients: int, num_rounds: int) -> list[float]:
    """FedAvg by hand: the accuracy after each round."""
    test = digits.load_test()
    parts = [digits.load_partition(at, num_clients) for at in range(num_clients)]
    model = digits.initial_arrays()
    accuracies = []
    for number in range(1, num_rounds + 1):
        trained = [
            digits.train(model, part, epochs=10, learning_rate=0.2, seed=1000 * number + at)[0]
            for at, part in enumerate(parts)
        ]
        weights = [len(part) / NUM_TRAINING_IMAGES for part in parts]
        model = {name: sum(w * t[name] for w, t in zip(weights, trained, strict=True)) for name in model}
        accuracies.append(digits.evaluate(model, test)[1])
    return accuracies


@pytest.mark.parametrize(
    "num_clients", [5, pytest.param(2, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.long)]
)
def test_five_rounds_of_fedavg_are_right_nine_times_in_ten(num_clients: int) -> None:
    assert federate(num_clients, 5)[-1] >= 0.93


@pytest.mark.parametrize("num_clients", [1, 3, 5, 8, 100])
def test_partitions_are_the_whole_training_set_and_none_is_empty(num_clients: int) -> None:
    parts = [digits.load_partition(at, num_clients) for at in range(num_clients)]
    assert sum(len(part) for part in parts) == NUM_TRAINING_IMAGES
    assert min(len(part) for part in parts) >= 1


def test_labels_are_split_unevenly() -> None:
    counts = np.array([np.bincount(digits.load_partition(at, 5).labels, minlength=10) for at in range(5)])
    assert (counts.max(axis=0) > 3 * counts.min(axis=0)).all()


def test_training_is_the_same_every_time() -> None:
    part = digits.load_partition(0, 5)
    runs = [digits.train(digits.initial_arrays(), part, epochs=2, learning_rate=0.2, seed=1) for _ in range(2)]
    for first, second in pairwise(runs):
        assert first[1] == second[1]
        for name, array in first[0].items():
            assert array.tobytes() == second[0][name].tobytes()


def test_training_leaves_the_arrays_it_was_given_alone() -> None:
    model = digits.initial_arrays()
    digits.train(model, digits.load_partition(0, 5), epochs=1, learning_rate=0.2, seed=1)
    for name, array in digits.initial_arrays().items():
        assert (model[name] == array).all()


def test_a_partition_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="partition 5 of 5"):
        digits.load_partition(5, 5)


def test_importing_the_demo_does_not_import_flwr() -> None:
    code = "import sys, fedops_mqtt.demo; sys.exit('flwr' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
