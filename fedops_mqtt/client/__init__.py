"""FedOps' client modules, under FedOps' names; the daemon that they start is in `device`.

Importing it costs nothing: each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedops_mqtt.client.app import FLClientTask, run_client

__all__ = ["FLClientTask", "run_client"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("fedops_mqtt.client.app"), name)
