"""The demo's federated task: handwritten digits, split unevenly by label, a small network in numpy.

`client_app` is made when it is first asked for, so that a daemon which only names it never imports flwr.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedops_mqtt.demo.client import client_app as client_app

__all__ = ["client_app"]


def __getattr__(name: str) -> Any:
    if name == "client_app":
        from fedops_mqtt.demo.client import client_app

        return client_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
