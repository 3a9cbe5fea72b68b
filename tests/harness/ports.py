"""Ports for what a test starts later."""

import random
import socket

_PORTS = range(10240, 16384)
"""Neither those of outgoing connections (Linux: from 32768 on), any of which may take a port that was free a moment
ago, nor those that `bus.mosquitto` takes for a broker whose port is nobody's concern."""

_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port of this machine where nobody listens, and that no other test gets until this process ends."""
    for port in random.sample(_PORTS, len(_PORTS)):
        reserved = socket.socket(type=socket.SOCK_DGRAM)  # the UDP port of this number: whoever has it has both
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                reserved.bind(("127.0.0.1", port))
                probe.bind(("127.0.0.1", port))
            except OSError:
                reserved.close()
                continue
        _reserved.append(reserved)
        return port
    raise AssertionError(f"no port of {_PORTS} is free")
