"""MQTT: a connection that heals itself, the owner of a retained status, mosquitto as a managed process.

Bytes and topic strings end here: above the bus there are only messages.
"""

from fedops_mqtt.bus.address import (
    BrokerAddress,
    BusOptions,
    client_id_of,
    parse_broker_url,
    parse_broker_urls,
    without_password,
)
from fedops_mqtt.bus.connection import Connection, Publication
from fedops_mqtt.bus.errors import (
    BrokerUrlError,
    BusError,
    ClientIdError,
    ConflictingInstanceError,
    ConnectError,
    ConnectTimeoutError,
    CredentialsError,
    EpochFileError,
    MosquittoError,
    NotConnectedError,
    PacketTooLargeError,
    PublishRefusedError,
    PublishTimeoutError,
    VersionError,
)
from fedops_mqtt.bus.events import BusEvent, Cleared, Connected, Disconnected, Dropped, Malformed, Received
from fedops_mqtt.bus.mosquitto import Mosquitto
from fedops_mqtt.bus.owner import EpochFile, EpochStore, MemoryEpochs, StatusOwner, new_instance
from fedops_mqtt.bus.publish_queue import PublishQueue
from fedops_mqtt.bus.watch import Bus, connect

__all__ = [
    "BrokerAddress",
    "BrokerUrlError",
    "Bus",
    "BusError",
    "BusEvent",
    "BusOptions",
    "Cleared",
    "ClientIdError",
    "ConflictingInstanceError",
    "ConnectError",
    "ConnectTimeoutError",
    "Connected",
    "Connection",
    "CredentialsError",
    "Disconnected",
    "Dropped",
    "EpochFile",
    "EpochFileError",
    "EpochStore",
    "Malformed",
    "MemoryEpochs",
    "Mosquitto",
    "MosquittoError",
    "NotConnectedError",
    "PacketTooLargeError",
    "Publication",
    "PublishQueue",
    "PublishRefusedError",
    "PublishTimeoutError",
    "Received",
    "StatusOwner",
    "VersionError",
    "client_id_of",
    "connect",
    "new_instance",
    "parse_broker_url",
    "parse_broker_urls",
    "without_password",
]
