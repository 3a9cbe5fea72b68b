"""The AsyncAPI document: as the models say, good to the specification's parser, and true of what is really said."""

import asyncio
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from asyncapi_document import as_text
from browsing import ROOT
from jsonschema import Draft7Validator
from yard import Site

from fedops_mqtt.protocol import parse_topic
from fedops_mqtt.protocol.topics import Channel
from fedops_mqtt.runtime.background import alongside

FILE = ROOT / "docs/asyncapi.json"
HERE = Path(__file__).parent


def test_the_file_matches_the_models() -> None:
    said = "run `python tests/browser/asyncapi_document.py > docs/asyncapi.json`"
    assert FILE.read_text(encoding="utf-8") == as_text(), said


@pytest.mark.long
async def test_the_specifications_own_parser_takes_it() -> None:
    tools = ROOT / ".npm-tools"
    assert tools.exists(), "make test-browser installs the parser (tests/browser/install-tools.sh)"
    node = await asyncio.create_subprocess_exec(
        "node", str(HERE / "check_asyncapi.mjs"), str(tools), str(FILE), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(node.communicate(), 300)
    assert node.returncode == 0, out.decode()


def test_a_message_that_is_none_is_found() -> None:
    with pytest.raises(AssertionError, match="client_mac"):
        validate(Channel.CLIENT_STATUS, {"status": "online"})


@pytest.mark.long
async def test_every_message_of_a_run_matches_the_document(site: Site) -> None:
    heard: dict[Channel, list[dict[str, Any]]] = defaultdict(list)
    port = int(site.broker.rpartition(":")[2])
    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.subscribe("fedops/v1/#", qos=1)
        async with alongside(listen(client, heard), name="listener"):
            await site.start_manager()
            clients = await site.start_clients(2, system_interval_s=0.2)
            run_id = await site.start_run(num_rounds=2, min_clients=2)
            await site.observer.until_ended(run_id)
            busy = await site.start_client("02:00:00:00:02:01", "yard_apps:flat_out", system_interval_s=0.2)
            await site.observer.until(lambda: site.observer.client("02:00:00:00:02:01") is not None)
            run_id = await site.start_run(num_rounds=9, min_clients=1, clients=["02:00:00:00:02:01"])
            await site.observer.until_run(run_id, lambda run: run.round >= 1)
            await site.yard.run("stop", run_id, "--manager", site.manager_url, "--wait")
            for process in (busy, *clients.values()):
                process.process.kill()
            await site.observer.until(lambda: all(view.is_out for view in site.observer.clients.values()))
    for channel, messages in heard.items():
        for message in messages:
            validate(channel, message)
    assert set(heard) == set(Channel)
    assert {message["kind"] for message in heard[Channel.CLIENT_METRICS]} >= {"round", "system"}


async def listen(client: aiomqtt.Client, heard: dict[Channel, list[dict[str, Any]]]) -> None:
    async for message in client.messages:
        if message.payload:
            assert isinstance(message.payload, bytes)
            heard[parse_topic(str(message.topic)).channel].append(json.loads(message.payload))


def validate(channel: Channel, message: dict[str, Any]) -> None:
    document = json.loads(FILE.read_text(encoding="utf-8"))
    (said,) = document["channels"][channel.name.lower()]["messages"]
    schema = {"$ref": f"#/components/schemas/{said}", "components": document["components"]}
    errors = [
        f"{'.'.join(map(str, each.path))}: {each.message}" for each in Draft7Validator(schema).iter_errors(message)
    ]
    assert not errors, f"{channel.name}: {errors}"
