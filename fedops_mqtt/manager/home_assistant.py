"""Home Assistant discovery, off by default: two sensors per client that read the client's own retained status.

Only the descriptions are published, so the sensors work without a manager. They show the status that came
last and compare no epochs: a late last will is shown until the client corrects it, within a second.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from fedops_mqtt import __version__
from fedops_mqtt.bus import BusError, PublishRefusedError
from fedops_mqtt.core.fleet import DEFAULT_HEARTBEAT_S, LEASE_HEARTBEATS
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.events import ChangeTopic, ClientKey
from fedops_mqtt.protocol import mac_to_level, topics

logger = logging.getLogger(__name__)

_IDLE_S = 3600.0
_RETRY_S = 5.0

CONNECTIVITY = "{{ 'OFF' if value_json.status == 'client-out' else 'ON' }}"
TRAINING = "{{ 'ON' if value_json.run and value_json.status != 'client-out' else 'OFF' }}"
_SENSORS = (
    ("connectivity", "Connectivity", "connectivity", CONNECTIVITY),
    ("training", "Training", "running", TRAINING),
)


class HomeAssistant:
    """Publishes a description of every client once, and clears it when the client is forgotten."""

    def __init__(self, context: ManagerContext, *, prefix: str) -> None:
        self._context = context
        self._prefix = prefix
        self._described: dict[ClientKey, tuple[str, float]] = {}
        self._has_warned = False

    async def run(self) -> None:
        """Follow the fleet, for ever; publishing is retried while the broker is away."""
        fleet = self._context.bus_reader.fleet
        with self._context.events.subscribed(ChangeTopic.CLIENT, ChangeTopic.FORGOTTEN) as subscription:
            due = dict.fromkeys(fleet.clients)
            while True:
                try:
                    while due:
                        key = next(iter(due))
                        await self._describe(key)
                        del due[key]
                except BusError as error:
                    self._log_failure(error)
                    await asyncio.sleep(_RETRY_S)
                changes = subscription.take() if due else await subscription.wait(_IDLE_S)
                if any(each.kind is ChangeTopic.LAGGED for each in changes):
                    due |= dict.fromkeys([*fleet.clients, *self._described])
                due |= dict.fromkeys((each.task_id or "", each.client_mac or "") for each in changes)

    def _log_failure(self, error: BusError) -> None:
        """Warn of a refusal once: only a change of the broker's ACL helps (MQTT 3.1.1 does not report refusals)."""
        logger.debug("Home Assistant discovery is published later", extra={"problem": str(error)})
        if isinstance(error, PublishRefusedError) and not self._has_warned:
            self._has_warned = True
            advice = f"allow it in the broker's ACL: topic write {self._prefix}/#"
            logger.warning(
                "the broker refuses Home Assistant discovery", extra={"problem": str(error), "advice": advice}
            )

    async def _describe(self, key: ClientKey) -> None:
        """Publish a client's description if it has changed; clear it when the client is not known any more."""
        view = self._context.bus_reader.fleet.client(*key)
        if view is None:
            for topic in describe(*key, name="", heartbeat_s=1, prefix=self._prefix):
                await self._context.connection.publish_foreign(topic, b"", is_retained=True)
            self._described.pop(key, None)
            return
        name = view.status.client_name or view.status.client_mac
        heartbeat_s = view.status.heartbeat_s or DEFAULT_HEARTBEAT_S
        if self._described.get(key) == (name, heartbeat_s):
            return
        for topic, config in describe(*key, name=name, heartbeat_s=heartbeat_s, prefix=self._prefix).items():
            await self._context.connection.publish_foreign(topic, json.dumps(config).encode(), is_retained=True)
        self._described[key] = name, heartbeat_s


def describe(
    task_id: str, client_mac: str, *, name: str, heartbeat_s: float, prefix: str
) -> Mapping[str, dict[str, Any]]:
    """Return the descriptions of a client's sensors by topic (Home Assistant, MQTT discovery)."""
    level = mac_to_level(client_mac).replace("-", "")
    device = {
        "identifiers": [f"fedops_{level}"],
        "connections": [["mac", client_mac]],
        "name": name,
        "manufacturer": "fedops-mqtt",
        "model": f"FL client of {task_id}",
    }
    common = {
        "state_topic": str(topics.client_status(task_id, client_mac)),
        "expire_after": max(1, round(LEASE_HEARTBEATS * heartbeat_s)),
        "device": device,
        "origin": {"name": "fedops-mqtt", "sw_version": __version__},
    }
    task = "".join(character if character.isalnum() else "_" for character in task_id)
    return {
        f"{prefix}/binary_sensor/fedops_{task}_{level}_{sensor}/config": {
            "name": label,
            "unique_id": f"fedops_{task_id}_{level}_{sensor}",
            "device_class": device_class,
            "value_template": template,
            **common,
        }
        for sensor, label, device_class, template in _SENSORS
    }
