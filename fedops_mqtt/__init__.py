"""fedops-mqtt: the lifecycle plane for federated learning on IoT fleets, over MQTT.

Importing it costs nothing: each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedops_mqtt.bus.watch import Bus, connect
    from fedops_mqtt.manager.client import AsyncManagerClient, ManagerClient

__version__ = "0.1.0"

__all__ = ["AsyncManagerClient", "Bus", "ManagerClient", "__version__", "connect"]

_HOME_OF = {
    "AsyncManagerClient": "fedops_mqtt.manager.client",
    "Bus": "fedops_mqtt.bus.watch",
    "ManagerClient": "fedops_mqtt.manager.client",
    "connect": "fedops_mqtt.bus.watch",
}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
