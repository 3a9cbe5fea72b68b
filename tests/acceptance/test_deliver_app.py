"""An app gets from its project's folder to five devices that have nothing but the package, over a fleet's broker."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from line_site import model_of
from ports import free_port
from reader import Json
from secure_site import HOST, MANAGER, PROBE, SERVER, TASK, SecureSite
from yard import Installed, Yard

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.bus.mosquitto import find_config
from fedops_mqtt.enrolment import EnrolmentRequest, Ports, Role, init_fleet

DEVICES = [f"02:00:00:00:00:1{number}" for number in range(5)]

PROJECT = """
[project]
name = "digits"
version = "{version}"
license = "Apache-2.0"
description = "adds"
dependencies = ["flwr>=1.20"]
[tool.flwr.app]
publisher = "lab"
[tool.flwr.app.components]
serverapp = "added.server_app:app"
clientapp = "added.client_app:app"
[tool.flwr.app.config]
num-server-rounds = 1
step = {step}
"""
CLIENT = """
from flwr.app import ArrayRecord, MetricRecord, RecordDict, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    arrays = [each + context.run_config["step"] for each in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.5})}), reply_to=message)
"""
SERVER_APP = """
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = FedAvg(min_train_nodes=5, min_available_nodes=5)
    zeros = ArrayRecord([np.zeros(3)])
    strategy.start(grid=grid, initial_arrays=zeros, num_rounds=context.run_config["num-server-rounds"])
"""


def write_project(folder: Path, *, version: str, step: float) -> Path:
    (folder / "added").mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(PROJECT.format(version=version, step=step))
    (folder / "added" / "__init__.py").touch()
    (folder / "added" / "client_app.py").write_text(CLIENT)
    (folder / "added" / "server_app.py").write_text(SERVER_APP)
    return folder


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SecureSite]:
    ports = Ports(certificate=free_port(), password=free_port(), websockets=free_port())
    fleet = init_fleet(tmp_path / "fleet", hosts=[HOST], shipped=find_config("mosquitto.conf").parent, ports=ports)
    for mac in DEVICES:
        fleet.enrol(EnrolmentRequest(role=Role.DEVICE, name=mac, tasks=[TASK], app="delivered"))
    fleet.enrol(EnrolmentRequest(role=Role.SERVER, name=SERVER, tasks=[TASK], hosts=[HOST]))
    fleet.enrol(EnrolmentRequest(role=Role.DASHBOARD, name=PROBE))
    async with Mosquitto(config=fleet.broker_folder / "mosquitto.conf") as broker:
        yield SecureSite(fleet, broker)


async def start_all(yard: Yard, site: SecureSite) -> str:
    """Start the manager and the devices; return the manager's URL."""
    tasks = yard.folder / "tasks.toml"
    tasks.write_text(f"[published]\nconfig = {json.dumps(str(site.bundle(SERVER)))}\n")
    manager = await yard.start(
        "manager", "--config", str(site.bundle(MANAGER)), "--tasks", str(tasks),
        http="127.0.0.1:0", state_dir=yard.folder / "manager", store=yard.folder / "models",
    )  # fmt: skip
    url = (await manager.until_printed(r"API at (\S+)")).group(1)
    for mac in DEVICES:
        where = yard.folder / "devices"
        device = await yard.start("client", "--config", str(site.bundle(mac)), state_dir=where, heartbeat_s=5)
        await device.until_printed("connected to the broker")
    return url


async def do(yard: Yard, url: str, *verb: str) -> Installed:
    done = await yard.run(*verb, "--manager", url)
    assert done.process.returncode == 0, done.stdout + done.stderr
    return done


async def run_to_its_end(yard: Yard, url: str, *options: str) -> Json:
    started = await do(yard, url, "start", TASK, "--min-clients", "5", "--wait", *options)
    run_id = started.stdout.split()[0]
    return Json(json.loads((await do(yard, url, "run", "show", run_id, "--json")).stdout))


@pytest.mark.long
async def test_a_project_is_published_run_changed_and_rolled_back_on_five_devices(yard: Yard, site: SecureSite) -> None:
    url = await start_all(yard, site)
    fleet = ("--fleet", str(site.fleet.folder))
    unsigned = await yard.run("app", "publish", str(write_project(yard.folder / "p", version="1.0", step=1.0)),
                              "--task", TASK, "--manager", url)  # fmt: skip
    assert "app-unsigned" in unsigned.stderr
    other = init_fleet(yard.folder / "other", hosts=[HOST], shipped=find_config("mosquitto.conf").parent)
    foreign = await yard.run("app", "publish", str(yard.folder / "p"), "--task", TASK, "--manager", url,
                             "--fleet", str(other.folder))  # fmt: skip
    assert "app-unknown-signer" in foreign.stderr
    await do(yard, url, "app", "publish", str(yard.folder / "p"), "--task", TASK, *fleet)
    first = await run_to_its_end(yard, url, "--run-config", "step=2.5")
    assert (first["app_version"], first["run_config"], len(first["clients"])) == ("1.0", {"step": 2.5}, 5)
    assert list(model_of(first)) == [2.5] * 3
    write_project(yard.folder / "p", version="1.1", step=10.0)
    done = await do(yard, url, "run", str(yard.folder / "p"), "--task", TASK, "--min-clients", "5", *fleet)
    second = Json(json.loads((await do(yard, url, "runs", "--json")).stdout.splitlines()[0]))
    assert (second["app_version"], second["outcome"]) == ("1.1", "completed"), done.stdout
    after_second = model_of(second)
    assert len(set(after_second.tolist())) == 1
    await do(yard, url, "app", "rollback", TASK)
    third = await run_to_its_end(yard, url)
    assert (third["app_version"], third["app_digest"]) == ("1.0", first["app_digest"])
    assert np.isfinite(model_of(third)).all()
    shown = await do(yard, url, "app", "show", first["app_digest"])
    assert set(re.findall(r"run_id=(\S+)", shown.stdout)) == {first["run_id"], third["run_id"]}
