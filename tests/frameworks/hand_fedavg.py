"""FedAvg by hand, in a loop, with the example's own code and none of ours in between: what a run must come to.

Usage: hand_fedavg.py EXAMPLE_FOLDER CLIENTS ROUNDS OUT.npz; runs in the example's folder. The adapters are not used.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml

example, num_clients, num_rounds, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.chdir(example)
sys.path.insert(0, example)

from client_main import make_fl_task  # noqa: E402

cfg = yaml.safe_load(Path("config.yaml").read_text())
view = SimpleNamespace(**cfg)


def torch_arrays(task):
    return [tensor.detach().numpy().copy() for tensor in task["model"].state_dict().values()]


def torch_load(task, arrays):
    import torch

    model = task["model"]
    model.load_state_dict(
        {name: torch.from_numpy(array.copy()) for name, array in zip(model.state_dict(), arrays, strict=True)}
    )


def torch_train(task):
    task["train_torch"](task["model"], task["train_loader"], cfg["num_epochs"], view)
    return len(task["train_loader"].dataset)


def keras_train(task):
    task["model"].fit(
        task["x_train"], task["y_train"], batch_size=cfg["batch_size"], epochs=cfg["num_epochs"], verbose=0
    )
    return len(task["x_train"])


def lora_names(task):
    return [name for name, parameter in task["model"].named_parameters() if parameter.requires_grad]


def lora_arrays(task):
    found = dict(task["model"].named_parameters())
    return [found[name].detach().numpy().copy() for name in lora_names(task)]


def lora_load(task, arrays):
    import torch

    found = dict(task["model"].named_parameters())
    with torch.no_grad():
        for name, array in zip(lora_names(task), arrays, strict=True):
            found[name].copy_(torch.from_numpy(array))


def lora_train(task):
    task["finetune_llm"](
        task["model"], task["trainset"], None, None, None, num_epochs=cfg["num_epochs"], batch_size=cfg["batch_size"]
    )
    return len(task["trainset"])


def sklearn_begin(task):
    task["model"].partial_fit(np.zeros((10, 64)), np.arange(10), classes=np.arange(10))
    task["model"].t_ = 1.0
    sklearn_load(task, [np.zeros((10, 64)), np.zeros(10)])


def sklearn_load(task, arrays):
    task["model"].coef_, task["model"].intercept_ = (array.copy() for array in arrays)


def sklearn_train(task):
    for _ in range(cfg["num_epochs"]):
        task["model"].partial_fit(task["x_train"].astype(np.float64), task["y_train"])
    return len(task["x_train"])


def numpy_train(task):
    task["model"] = task["train_numpy"](task["model"], task["train_data"], cfg["num_epochs"], view)
    return len(task["train_data"])


KINDS = {
    "Pytorch": (torch_arrays, torch_load, torch_train),
    "Tensorflow": (
        lambda task: [np.array(each) for each in task["model"].get_weights()],
        lambda task, arrays: task["model"].set_weights(arrays),
        keras_train,
    ),
    "Huggingface": (lora_arrays, lora_load, lora_train),
    "Sklearn": (lambda task: [task["model"].coef_, task["model"].intercept_], sklearn_load, sklearn_train),
    "Numpy": (
        lambda task: task["model"],
        lambda task, arrays: task.update(model=[array.copy() for array in arrays]),
        numpy_train,
    ),
}
arrays_of, load, train = KINDS[cfg["model_type"]]
tasks = [
    make_fl_task(SimpleNamespace(node_config={"partition-id": number, "num-partitions": num_clients}))
    for number in range(num_clients)
]
if cfg["model_type"] == "Sklearn":
    for each in tasks:
        sklearn_begin(each)
arrays = [np.array(array) for array in arrays_of(tasks[0])]
for _ in range(num_rounds):
    gathered = []
    for task in tasks:
        load(task, arrays)
        gathered.append((train(task), [np.array(array) for array in arrays_of(task)]))
    total = sum(count for count, _ in gathered)
    arrays = [sum(count * trained[at] for count, trained in gathered) / total for at in range(len(arrays))]
    arrays = [np.asarray(array, dtype=before.dtype) for array, before in zip(arrays, arrays_of(tasks[0]), strict=True)]
np.savez(out, *arrays)
