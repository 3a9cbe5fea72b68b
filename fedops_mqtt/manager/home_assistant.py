"""Home Assistant discovery, off by default: two sensors per client that read the client's own retained status.

Only the descriptions are published, so the sensors live on without a manager. They do not fence as our readers do: what
a late will leaves behind is repaired by its owner within a second.
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
    """Describes every client once, and takes the description back when a client is forgotten."""

    def __init__(self, desk: ManagerContext, *, prefix: str) -> None:
        self._desk = desk
        self._prefix = prefix
        self._told: dict[ClientKey, tuple[str, float]] = {}
        self._has_warned = False

    async def run(self) -> None:
        """Follow the fleet, for ever; the broker's outages are waited out."""
        fleet = self._desk.watch.fleet
        with self._desk.events.subscribed(ChangeTopic.CLIENT, ChangeTopic.FORGOTTEN) as subscription:
            due = dict.fromkeys(fleet.clients)
            while True:
                try:
                    while due:
                        key = next(iter(due))
                        await self._tell(key)
                        del due[key]
                except BusError as error:
                    self._say_why(error)
                    await asyncio.sleep(_RETRY_S)
                news = subscription.take() if due else await subscription.wait(_IDLE_S)
                if any(each.kind is ChangeTopic.LAGGED for each in news):
                    due |= dict.fromkeys([*fleet.clients, *self._told])
                due |= dict.fromkeys((each.task_id or "", each.client_mac or "") for each in news)

    def _say_why(self, error: BusError) -> None:
        """Tell of a refusal once: nobody but whoever writes the broker's ACL can mend it (MQTT 3.1.1 never tells)."""
        logger.debug("Home Assistant discovery is published later", extra={"problem": str(error)})
        if isinstance(error, PublishRefusedError) and not self._has_warned:
            self._has_warned = True
            advice = f"allow it in the broker's ACL: topic write {self._prefix}/#"
            logger.warning(
                "the broker refuses Home Assistant discovery", extra={"problem": str(error), "advice": advice}
            )

    async def _tell(self, key: ClientKey) -> None:
        """Describe a client if it is not as it was told; take the description back where it is not known any more."""
        view = self._desk.watch.fleet.client(*key)
        if view is None:
            for topic in describe(*key, name="", heartbeat_s=1, prefix=self._prefix):
                await self._desk.connection.publish_foreign(topic, b"", is_retained=True)
            self._told.pop(key, None)
            return
        name = view.status.client_name or view.status.client_mac
        heartbeat_s = view.status.heartbeat_s or DEFAULT_HEARTBEAT_S
        if self._told.get(key) == (name, heartbeat_s):
            return
        for topic, config in describe(*key, name=name, heartbeat_s=heartbeat_s, prefix=self._prefix).items():
            await self._desk.connection.publish_foreign(topic, json.dumps(config).encode(), is_retained=True)
        self._told[key] = name, heartbeat_s


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
    task = "".join(outbound_message if outbound_message.isalnum() else "_" for outbound_message in task_id)
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
