"""FedOps' own MNIST program after its move: a broker, a manager, two of its clients, one run; as its README says."""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from examples_run import EXAMPLES
from yard import Yard

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.store.versions import ModelStore

pytestmark = pytest.mark.long

START_S = 300.0
"""Every program imports torch first, and they start at once."""


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    yard = Yard(tmp_path)
    try:
        yield yard
    finally:
        await yard.clear_up()


async def test_fedops_program_trains_as_it_was(
    yard: Yard, broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    example = shutil.copytree(EXAMPLES / "fedops_mnist", tmp_path / "example")
    settings = {"broker": broker.url, "state_dir": tmp_path / "state", "store": tmp_path / "models"}
    manager = await yard.start("manager", "--tasks", "tasks.toml", cwd=example, http="127.0.0.1:0", **settings)
    api = (await manager.until_printed(r"API at (\S+)", timeout_s=START_S)).group(1)
    clients = [
        await yard.start(
            "client_main.py", f"partition={number}", command=sys.executable, cwd=example, mac=mac, **settings
        )
        for number, mac in enumerate(["02:00:00:00:00:01", "02:00:00:00:00:02"])
    ]
    for client in clients:
        await client.until_printed("connected", timeout_s=START_S)
    limits = ("--manager", api, "--wait", "--rounds", "3")
    started = await yard.run("start", "fedops-mnist", *limits, timeout_s=START_S)
    assert started.process.returncode == 0, started.stdout + started.stderr
    model = ModelStore(str(tmp_path / "models"), task_id="fedops-mnist", model_name="MNISTClassifier").newest()
    assert model is not None
    assert model.metrics["accuracy"] > 0.85
    assert model.metrics["seen"] == 360
    assert (example / "local_model" / "fedops-mnist" / "MNISTClassifier_local_model_V1.safetensors").is_file()
