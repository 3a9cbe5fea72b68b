"""Ports for what a test starts later."""

import socket

from fedops_mqtt.bus import mosquitto

_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port of this machine where nobody listens, and that no other test gets until this process ends."""
    while True:
        port = mosquitto.free_port()
        reserved = socket.socket(type=socket.SOCK_DGRAM)  # the UDP port of this number: whoever has it has both
        try:
            reserved.bind(("127.0.0.1", port))
        except OSError:
            reserved.close()
            continue
        _reserved.append(reserved)
        return port
