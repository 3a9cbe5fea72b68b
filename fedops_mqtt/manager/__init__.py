"""The manager: it watches the fleet, decides what has to be done about each run, and does it."""

from fedops_mqtt.manager.app import run_manager

__all__ = ["run_manager"]
