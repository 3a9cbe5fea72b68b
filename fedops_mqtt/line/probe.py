"""What answers at a `server_ip`: our line, a classic Flower gRPC server, or nobody (yet). Imports no flwr.

A bare FedOps start names no transport, so the training process looks before it joins.
"""

import socket
import ssl
from enum import StrEnum
from pathlib import Path

from fedops_mqtt.line.connection import BROKEN, Connector
from fedops_mqtt.line.errors import LineRefusedError
from fedops_mqtt.line.wire import HELLO_PATH

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""RFC 9113, 3.4: what an HTTP/2 client says first, with an empty SETTINGS frame."""
_HTTP2_SETTINGS = 4
"""RFC 9113, 6.5: the type of the frame that a server says first."""
_FRAME_HEAD_BYTES = 9


class Answers(StrEnum):
    """Who answers at an address."""

    LINE = "line"
    GRPC = "grpc"
    NOBODY = "nobody"


def probe(server_ip: str, *, ca_file: Path | None = None, timeout_s: float = 5.0) -> Answers:
    """Look who answers at `server_ip` now; takes at most about twice `timeout_s`.

    Raises:
        LineConfigError: the address or the CA file is wrong.
    """
    connection = Connector(server_ip, ca_file=ca_file, connect_s=timeout_s).connection()
    try:
        connection.ask("GET", HELLO_PATH, headers={}, timeout_s=timeout_s)
    except (*BROKEN, LineRefusedError):
        return Answers.GRPC if _speaks_http2(server_ip, timeout_s) else Answers.NOBODY
    finally:
        connection.close()
    return Answers.LINE


def _speaks_http2(server_ip: str, timeout_s: float) -> bool:
    host, _, port = server_ip.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as sock:
            sock.sendall(_HTTP2_PREFACE)
            head = sock.recv(_FRAME_HEAD_BYTES, socket.MSG_WAITALL)
    except (OSError, ssl.SSLError):
        return False
    return len(head) > 3 and head[3] == _HTTP2_SETTINGS
