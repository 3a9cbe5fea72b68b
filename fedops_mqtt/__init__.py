"""fedops-mqtt: the lifecycle plane for federated learning on IoT fleets, over MQTT.

Importing it costs nothing: each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedops_mqtt.bus.watch import Bus, connect
    from fedops_mqtt.manager.client import AsyncManagerClient, ManagerClient
    from fedops_mqtt.manager.sites import AsyncSitesClient, SitesClient

__version__ = "0.1.0"

__all__ = [
    "AsyncManagerClient",
    "AsyncSitesClient",
    "Bus",
    "ManagerClient",
    "SitesClient",
    "__version__",
    "connect",
]

_HOME_OF = {
    "AsyncManagerClient": "fedops_mqtt.manager.client",
    "AsyncSitesClient": "fedops_mqtt.manager.sites",
    "Bus": "fedops_mqtt.bus.watch",
    "ManagerClient": "fedops_mqtt.manager.client",
    "SitesClient": "fedops_mqtt.manager.sites",
    "connect": "fedops_mqtt.bus.watch",
}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
