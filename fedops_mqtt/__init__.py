"""fedops-mqtt: the lifecycle plane for federated learning on IoT fleets, over MQTT."""

__version__ = "0.1.0"
