"""The shim of a client and the API of a manager, as processes, under documented, undocumented and broken requests."""

import asyncio
from functools import partial

import httpx
import pytest
from http_fuzz import fuzz_documented, fuzz_raw
from yard import TIMEOUT_S, Installed, Yard

from fedops_mqtt.bus import Mosquitto

pytestmark = pytest.mark.long

EXAMPLES = 8
RAW = 100
SEED = 20261124


async def in_thread(work: partial[object]) -> object:
    return await asyncio.to_thread(work)


def was_well(process: Installed) -> None:
    assert process.process.returncode is None, process.stderr
    assert "Traceback" not in process.stderr, process.stderr


@pytest.fixture
async def client(yard: Yard, broker: Mosquitto, task_id: str) -> Installed:
    return await yard.start(
        "client",
        broker=broker.url,
        task_id=task_id,
        app="fedops_mqtt.demo:client_app",
        mac="02:00:00:00:00:01",
        state_dir=yard.folder / "client",
        http="127.0.0.1:0",
        join_limit_s=1,
    )


async def test_the_shim_answers_whatever_is_asked(client: Installed) -> None:
    url = "http://" + (await client.until_printed(r"HTTP shim listens address=(\S+)")).group(1)
    assert await in_thread(partial(fuzz_documented, url, "/openapi.json", num_examples=EXAMPLES)) == 3
    await in_thread(partial(fuzz_raw, url, seed=SEED, count=RAW))
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
        assert (await http.get("/online")).json()["client_mac"] == "02:00:00:00:00:01"
    was_well(client)


async def test_the_managers_api_answers_whatever_is_asked(yard: Yard, broker: Mosquitto, client: Installed) -> None:
    tasks = yard.folder / "tasks.toml"
    tasks.write_text('[tasks.digits]\nmodule = "fedops_mqtt.demo.server"\n[tasks.digits.limits]\nrun_s = 5\n')
    manager = await yard.start(
        "manager",
        broker=broker.url,
        tasks_file=tasks,
        http="127.0.0.1:0",
        state_dir=yard.folder / "manager",
        store=yard.folder / "models",
    )
    url = (await manager.until_printed(r"API at (\S+)")).group(1)
    document = "/api/v1/openapi.json"
    count = await in_thread(
        partial(fuzz_documented, url, document, num_examples=EXAMPLES, leaves_out="/events$")  # a stream has no end
    )
    assert isinstance(count, int)
    assert count > 10
    await in_thread(partial(fuzz_raw, url, seed=SEED, count=RAW))
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
        assert (await http.get("/api/v1/health")).json()["status"] == "ok"
    was_well(manager)
    was_well(client)
