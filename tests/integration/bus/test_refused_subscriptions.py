"""A broker that refuses a subscription: mosquitto does so with its dynamic-security plugin, others with their ACL."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from bus_helpers import MAC, QUICK, next_event, next_status, reader_of, status

from fedops_mqtt.bus import Connected, Mosquitto, PublishRefusedError
from fedops_mqtt.enrolment.broker_files import find_plugin
from fedops_mqtt.protocol import topics

STATUSES = "fedops/v1/+/clients/+/status"


@pytest.fixture
async def choosy(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker that grants statuses of clients and nothing else."""
    granted = {"acltype": "subscribePattern", "topic": STATUSES, "priority": 0, "allow": True}
    allowed = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    rules = tmp_path / "rules.json"
    rules.write_text(
        json.dumps(
            {
                "defaultACLAccess": allowed,
                "clients": [],
                "groups": [{"groupname": "all", "roles": [{"rolename": "statuses"}]}],
                "anonymousGroup": "all",
                "roles": [{"rolename": "statuses", "acls": [granted]}],
            }
        )
    )
    plugin = {"plugin": str(find_plugin()), "plugin_opt_config_file": str(rules)}
    async with Mosquitto(changes=plugin) as broker:
        yield broker


@pytest.mark.parametrize("is_mqtt5", [True, False])
async def test_a_refused_subscription_is_an_error_and_the_connection_comes_back_without_it(
    choosy: Mosquitto, task_id: str, is_mqtt5: bool
) -> None:
    async with reader_of(choosy, STATUSES, options=replace(QUICK, is_mqtt5_tried=is_mqtt5)) as reader:
        with pytest.raises(PublishRefusedError, match="fedops/v1/#"):
            await reader.subscribe(["fedops/v1/#"])
        await reader.reconnect()
        await next_event(reader, Connected)
        await reader.publish(topics.client_status(task_id, MAC), status(task_id))
        await next_status(reader, lambda said: said.task_id == task_id)
