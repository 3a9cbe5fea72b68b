"""FedOps' server modules, under FedOps' names; the FL server's engine is in `aggregation`.

This file imports no flwr: the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedops_mqtt.server.app import FLServer as FLServer
    from fedops_mqtt.server.server_api import ServerAPI as ServerAPI
    from fedops_mqtt.server.server_utils import FLServerStatus as FLServerStatus

__all__ = ["FLServer", "FLServerStatus", "ServerAPI"]

_HOMES = {"FLServer": "app", "ServerAPI": "server_api", "FLServerStatus": "server_utils"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
