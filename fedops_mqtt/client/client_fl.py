"""FedOps' `client_fl`: `FLClient` and `flower_client_start`.

They are loaded when they are first used: they need flwr, which the daemon never imports.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedops_mqtt.client.registered_client import FLClient, flower_client_start

__all__ = ["FLClient", "flower_client_start"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("fedops_mqtt.client.registered_client"), name)
