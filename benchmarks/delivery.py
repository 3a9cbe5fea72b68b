"""From the command to the first training, with an app that no device has yet: ours, and `flwr run` on a SuperLink.

    python benchmarks/delivery.py --clients 8 --megabytes 1 [--keep-ready] [--no-superlink] [--json FILE]

Every device says by a file when its first training call of a run began. Measured from the start of the command
(`fedops-mqtt run FOLDER`, `flwr run FOLDER`) until the first device and until all of them train; a first run and a
second one of the same app. The devices and the servers are there before, and have come to rest; what a training imports
is in it, but with `--keep-ready`, where a process of ours that has imported Flower waits on each device.
The processor time of all processes meanwhile is what a fleet costs on one machine, whatever else runs there.
A SuperNode, its SuperExec and its training take about 250 MB together: 50 of them need 13 GB.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from bench_processes import Processes, end_on_sigterm, free_port, machine, save_json, table, wait_until

START_S = 600.0
RUN_S = 900.0
TASK = "delivered"
REST_S = 3.0
REST_SHARE = 0.15
"""Of one processor: a SuperLink with its SuperNodes polls all the time."""

PROJECT = """[project]
name = "delivered"
version = "1.0.0"
license = "Apache-2.0"
description = "marks when it trains"
dependencies = ["flwr>=1.20"]
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "delivered.server_app:app"
clientapp = "delivered.client_app:app"
[tool.flwr.app.config]
num-server-rounds = 1
clients = 1
marks = ""
"""
CLIENT = """import os
import time
from pathlib import Path

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    mark = Path(str(context.run_config["marks"])) / f"{context.node_id}.new"
    mark.write_text(str(time.time()))
    mark.rename(mark.with_suffix(".mark"))
    metrics = MetricRecord({"num-examples": 1})
    arrays = ArrayRecord(message.content["arrays"].to_numpy_ndarrays())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
"""
SERVER = """import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    count = int(context.run_config["clients"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
    strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(8)]), num_rounds=1)
"""


def write_project(folder: Path, megabytes: float) -> Path:
    """An app of this size; what fills it does not compress."""
    (folder / "delivered").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "delivered" / "__init__.py").touch()
    (folder / "delivered" / "client_app.py").write_text(CLIENT)
    (folder / "delivered" / "server_app.py").write_text(SERVER)
    (folder / "delivered" / "filling.py").write_text(f'FILLING = "{os.urandom(int(megabytes * 2**20)).hex()}"\n')
    return folder


def measure(
    processes: Processes, command: list[str], name: str, env: dict[str, str], marks: Path, clients: int
) -> dict:
    """Start a run and return the seconds from its command until the first and the last device trained.

    `processor_s` is what all its processes took until then.
    """
    marks.mkdir()
    before = processes.processor_s()
    began = time.time()
    process = processes.command(*command, name=name, env=env)
    wait_until(
        lambda: len(list(marks.glob("*.mark"))) >= clients, limit_s=RUN_S, what=f"{name}: all train", poll_s=0.05
    )
    taken = processes.processor_s() - before
    wait_until(lambda: process.poll() is not None, limit_s=RUN_S, what=f"{name} ends", poll_s=0.1)
    times = sorted(float(mark.read_text()) for mark in marks.glob("*.mark"))
    return {"first_s": times[0] - began, "all_s": times[-1] - began, "processor_s": taken}


def wait_for_rest(processes: Processes) -> None:
    """Wait until all that was started does next to nothing: what it did at its start is not part of a run."""

    def is_at_rest() -> bool:
        before = processes.processor_s()
        time.sleep(REST_S)
        return processes.processor_s() - before < REST_SHARE * REST_S

    wait_until(is_at_rest, limit_s=START_S, what="every process is at rest", poll_s=0.1)


def ours(folder: Path, project: Path, clients: int, *options: str) -> list[dict]:
    """A broker, a manager and daemons that take delivered apps; `options` are the daemons'."""
    folder.mkdir()
    broker, http = free_port(), free_port()
    env = {
        "FEDOPS_MQTT_BROKER": f"mqtt://127.0.0.1:{broker}",
        "FEDOPS_MQTT_STATE_DIR": str(folder / "state"),
        "FEDOPS_MQTT_STORE": str(folder / "models"),
        "FEDOPS_MQTT_MANAGER": f"http://127.0.0.1:{http}",
    }
    with Processes(folder) as processes:
        processes.command("fedops-mqtt", "broker", "--port", str(broker), name="broker", env=env)
        processes.command("fedops-mqtt", "manager", "--http", f"127.0.0.1:{http}", name="manager", env=env)
        for number in range(clients):
            mac = f"02:00:00:00:{number // 256:02x}:{number % 256:02x}"
            arguments = ("client", "--task-id", TASK, "--app", "delivered", "--mac", mac, *options)
            processes.command("fedops-mqtt", *arguments, name=f"client-{number}", env=env)

        def are_there() -> bool:
            return all("connected to the broker" in processes.log_of(f"client-{each}") for each in range(clients))

        wait_until(are_there, limit_s=START_S, what="every daemon is connected", poll_s=0.2)
        results = []
        for turn in ("first", "second"):
            wait_for_rest(processes)
            marks = folder / turn
            config = f'clients={clients} marks="{marks}"'
            command = ["fedops-mqtt", "run", str(project), "--min-clients", str(clients), "--run-config", config]
            results.append(measure(processes, command, f"run-{turn}", env, marks, clients))
        return results


def superlink(folder: Path, project: Path, clients: int) -> list[dict]:
    """`flower-superlink`, one `flower-supernode` a client, `flwr run`."""
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    home = folder / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{address}"\ninsecure = true\n'
    )
    env = {"FLWR_HOME": str(home)}
    with Processes(folder) as processes:
        processes.command(
            *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
            *("--port", address.rpartition(":")[2]),
            name="superlink",
            env=env,
        )
        time.sleep(8)  # supernodes that find nobody wait longer and longer between tries
        for number in range(clients):
            arguments = ("--insecure", "--superlink", address, "--port", str(free_port()))
            processes.command("flower-supernode", *arguments, name=f"supernode-{number}", env=env)

        def are_there() -> bool:
            return all("SuperNode ID:" in processes.log_of(f"supernode-{each}") for each in range(clients))

        wait_until(are_there, limit_s=START_S, what="every supernode is registered", poll_s=0.5)
        results = []
        for turn in ("first", "second"):
            wait_for_rest(processes)
            marks = folder / turn
            config = f'clients={clients} marks="{marks}"'
            command = ["flwr", "run", str(project), "bench", "--stream", "--run-config", config]
            results.append(measure(processes, command, f"run-{turn}", env, marks, clients))
        return results


def main() -> None:
    """Measure, print a table, and save what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--keep-ready", action="store_true")
    parser.add_argument("--no-superlink", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="delivery-") as name:
        folder = Path(name)
        project = write_project(folder / "project", options.megabytes)
        found = {"ours": ours(folder / "ours", project, options.clients)}
        if options.keep_ready:
            found["ours, keep_ready"] = ours(folder / "ready", project, options.clients, "--keep-ready", "true")
        if not options.no_superlink:
            found["superlink"] = superlink(folder / "superlink", project, options.clients)
    rows = [
        (who, turn, f"{each['first_s']:.2f}", f"{each['all_s']:.2f}", f"{each['processor_s']:.1f}")
        for who, turns in found.items()
        for turn, each in zip(("first run", "second run"), turns, strict=True)
    ]
    print(table(("who", "run", "first device trains, s", "all train, s", "processor time, s"), rows))
    save_json(options.json, {"machine": machine(), "options": vars(options) | {"json": None}, "found": found})


if __name__ == "__main__":
    main()
