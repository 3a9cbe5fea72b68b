"""Home Assistant finds two sensors a client, and their templates say what the client's status says."""

import asyncio
import json
from typing import Any

import aiomqtt
import pytest
from jinja2 import Environment
from manager_parts import PATIENCE_S, A, House, until
from pydantic import ValidationError

from fedops_mqtt.manager.home_assistant import CONNECTIVITY, TRAINING

HOW_IT_IS = [
    ({"status": "online", "run": None}, "ON", "OFF"),
    ({"status": "train-started", "run": {"run_id": "r"}}, "ON", "ON"),
    ({"status": "client-out", "run": None}, "OFF", "OFF"),
    ({"status": "client-out", "run": {"run_id": "r"}}, "OFF", "OFF"),
]


async def test_a_client_is_described_by_two_sensors_until_it_is_forgotten(house: House) -> None:
    async with house.managed(home_assistant="homeassistant") as api, listening(house) as person:
        async with house.device(A):
            configs = [await next_message(person) for _ in range(2)]
        for topic, config in configs:
            assert topic.startswith("homeassistant/binary_sensor/fedops_")
            assert config["state_topic"] == f"fedops/v1/{house.task_id}/clients/{A.replace(':', '-')}/status"
            assert config["expire_after"] == 180
        assert {config["device_class"] for _, config in configs} == {"connectivity", "running"}
        assert len({config["unique_id"] for _, config in configs}) == 2

        async def forgets() -> bool:  # a client that is still known as online, for a moment, is not forgotten
            return (await api.http.delete(f"/api/v1/clients/{A}")).status_code == 200

        await until(forgets, "the end of the device")
        cleared = {(await next_message(person))[0] for _ in range(2)}
        assert cleared == {topic for topic, _ in configs}


async def test_nothing_is_published_unless_it_is_enabled(house: House) -> None:
    async with listening(house) as person:
        async with house.managed() as api, house.device(A):
            await api.training(await api.start(house.task_id, clients=[A], min_clients=1), 1)
        await person.publish("homeassistant/the-end", "{}", qos=1)
        assert (await next_message(person))[0] == "homeassistant/the-end"


@pytest.mark.parametrize("prefix", ["homeassistant/#", "+/x", "", "a\0"])
def test_a_prefix_that_no_topic_can_have_is_refused_at_the_start(house: House, prefix: str) -> None:
    with pytest.raises(ValidationError, match="home_assistant"):
        house.settings(home_assistant=prefix)


def test_the_templates_show_what_the_status_has() -> None:
    templates = Environment(autoescape=True)
    for status, is_here, trains in HOW_IT_IS:
        assert templates.from_string(CONNECTIVITY).render(value_json=status) == is_here
        assert templates.from_string(TRAINING).render(value_json=status) == trains


class listening(aiomqtt.Client):
    def __init__(self, house: House) -> None:
        super().__init__("127.0.0.1", int(house.broker.url.rpartition(":")[2]))

    async def __aenter__(self) -> aiomqtt.Client:
        client = await super().__aenter__()
        await client.subscribe("homeassistant/#", qos=1)
        return client


async def next_message(person: aiomqtt.Client) -> tuple[str, dict[str, Any]]:
    async with asyncio.timeout(PATIENCE_S):
        message = await anext(aiter(person.messages))
    assert isinstance(message.payload, bytes)
    return str(message.topic), json.loads(message.payload or b"{}")
