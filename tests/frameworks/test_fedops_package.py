"""The published FedOps package, unmodified, on both sides of the bridge."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bridge_parts import NEW, Crossing
from ports import free_port
from reader import Json, observing
from yard import Installed, Site, Yard

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.protocol import ClientCondition, Outcome, RunOutcome

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-fedops" / "bin" / "python"
SERVER_PORT = 8080
"""Fixed in FedOps' server."""
SLOW_S = 300.0
"""Importing torch, transformers and FedOps takes ten seconds and more, twice at the same time on two cores."""
MIN_ACCURACY = 0.9
"""Zeros have half of it, one client's round of two epochs about 0.85."""


class FedOps:
    """FedOps' own programs, around one bridge."""

    def __init__(self, crossing: Crossing) -> None:
        self.crossing = crossing
        self.yard = crossing.site.yard

    async def start_client(self, port: int, seed: int) -> Installed:
        url = self.crossing.url
        managers = ("CLIENT_MANAGER", "SERVER_MANAGER", "CLIENT_PERFORMANCE")
        said = [f"FEDOPS_{name}_URL={url}" for name in managers]
        said += [f"FEDOPS_CLIENT_PORT={port}", "FEDOPS_AGGREGATION_HOST=127.0.0.1"]
        arguments = [str(HERE / "fedops_client_main.py"), self.crossing.site.task_id, str(seed)]
        return await self._start(f"client-{seed}", said, *arguments)

    async def start_server(self, num_clients: int) -> Installed:
        s3 = await self.yard.start("-p", str(port := free_port()), command=PYTHON.with_name("moto_server"))
        await s3.until_printed("Running on")
        said = [f"http_proxy={self.crossing.url}", "no_proxy=127.0.0.1,localhost"]
        said += [f"AWS_ENDPOINT_URL=http://127.0.0.1:{port}", "ACCESS_KEY_ID=x", "ACCESS_SECRET_KEY=x"]
        said += ["BUCKET_NAME=global-model", f"TASK_ID={self.crossing.site.task_id}"]
        return await self._start("server", said, str(HERE / "fedops_server_main.py"), str(num_clients))

    async def _start(self, name: str, environment: list[str], *arguments: str) -> Installed:
        folder = self.yard.folder / name
        folder.mkdir()
        quiet = "FLWR_TELEMETRY_ENABLED=0"
        return await self.yard.start(*environment, quiet, str(PYTHON), *arguments, command="/usr/bin/env", cwd=folder)


@pytest.fixture
async def fedops(tmp_path: Path, broker: Mosquitto, task_id: str) -> AsyncIterator[FedOps]:
    """One test's bridge and FedOps."""
    assert PYTHON.exists(), "the published FedOps is not installed: run `make test-frameworks`"
    yard = Yard(tmp_path)
    try:
        async with observing(broker.url, task_id) as observer:
            yield FedOps(Crossing(Site(yard, broker.url, task_id, observer)))
    finally:
        await yard.clear_up()


async def ended(crossing: Crossing) -> Json:
    return await crossing.site.observer.until_only_ended(timeout_s=SLOW_S)


async def test_fedops_clients_train_with_our_server(fedops: FedOps) -> None:
    crossing = fedops.crossing
    await crossing.start_manager(min_clients=2, server=HERE / "fedops_line_server.py")
    ports, other = (free_port(), free_port()), "02:00:00:00:02:99"
    # Two clients on one machine have one MAC: the second gets another for the bus.
    await crossing.start_bridge(f"http://127.0.0.1:{ports[0]}", f"{other}=http://127.0.0.1:{ports[1]}")
    for seed, port in enumerate(ports):
        await fedops.start_client(port, seed)
    await crossing.site.observer.until(lambda: len(crossing.site.observer.clients) == 2, timeout_s=SLOW_S)

    run_id = await crossing.site.start_run(num_rounds=3)
    run = await ended(crossing)
    assert (run.run_id, run.outcome, run.round) == (run_id, RunOutcome.COMPLETED, 3)
    assert (run.metrics["eval_accuracy"] or 0) > MIN_ACCURACY
    for mac in crossing.site.observer.clients:
        view = await crossing.site.observer.until_client(mac, ClientCondition.TRAIN_FINISHED)
        assert view.status.agent["via"] == "http bridge"
        assert view.status.last_run is not None
        assert (view.status.last_run.run_id, view.status.last_run.outcome) == (run_id, Outcome.FINISHED)


async def test_a_fedops_server_trains_a_fedops_client_and_one_of_this_package(fedops: FedOps) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", SERVER_PORT)) != 0, f"port {SERVER_PORT}, fixed in FedOps, is taken"
    crossing = fedops.crossing
    await crossing.start_manager(adopt=True, min_clients=2)
    port = free_port()
    await crossing.start_bridge(f"http://127.0.0.1:{port}")
    await fedops.start_client(port, 1)
    await crossing.start_new(app="fedops_numpy_app:app", folder=HERE)
    await crossing.site.observer.until(lambda: len(crossing.site.observer.clients) == 2, timeout_s=SLOW_S)

    await fedops.start_server(2)
    run = await ended(crossing)
    assert (run.outcome, run.reason) == (RunOutcome.COMPLETED, "the FedOps server reported that its round is over")
    assert (run.round, run.gl_model) == (3, 1)
    assert (run.metrics["gl_accuracy"] or 0) > MIN_ACCURACY
    for mac in run.clients:
        view = await crossing.site.observer.until_client(mac, ClientCondition.TRAIN_FINISHED)
        assert view.status.last_run is not None
        assert view.status.last_run.run_id == run.run_id
    assert NEW in run.clients
