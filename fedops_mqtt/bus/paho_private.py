"""What paho 2.2 and aiomqtt 2.5.1 do with their own insides, done otherwise.

Private and hooked on purpose: `paho.Client._handle_publish`, `._in_packet` and `._create_socket_connection`,
`aiomqtt.Client._loop`, `._client` and `._disconnected`, and paho's `on_socket_register_write`.
"""

import socket
from collections.abc import Callable
from typing import Any

import aiomqtt
import paho.mqtt.client as paho_client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import VariableByteIntegers

_QOS_BITS = 0b110
"""In the first byte of a PUBLISH (MQTT 5, 3.3.1); a packet identifier follows the topic where they are not 0."""


def skip_properties(paho: paho_client.Client) -> None:
    """Take the properties out of each PUBLISH before paho unpacks them; those of a message are not read here.

    paho 2.2 copies the rest of the packet at each property: 273 KB of user properties, which any publisher may send and
    the broker retains, hold the loop for 9 s.
    """
    take = paho._handle_publish

    def take_without_properties() -> MQTTErrorCode:
        packet = paho._in_packet["packet"]
        is_numbered = bool(paho._in_packet["command"] & _QOS_BITS)
        begin = 2 + int.from_bytes(packet[:2], "big") + 2 * is_numbered
        if begin < len(packet) and packet[begin]:
            num_bytes, num_length_bytes = VariableByteIntegers.decode(packet[begin : begin + 4])  # type: ignore[no-untyped-call]
            packet[begin : begin + num_length_bytes + num_bytes] = b"\0"
        return take()

    paho._handle_publish = take_without_properties  # type: ignore[method-assign]


def writes_while_open(client: aiomqtt.Client) -> Callable[[Any, Any, Any], None]:
    """Return what aiomqtt does when paho has something to write, but for a socket that was closed meanwhile.

    aiomqtt 2.5.1 keeps the bare number for the loop's next turn: by then it is nobody's, which is an error that the
    loop prints with a traceback, or another connection's, whose writer would spin for ever.
    """
    loop = client._loop

    def write() -> None:
        try:
            client._client.loop_write()
        except (OSError, ValueError) as error:
            if not client._disconnected.done():
                client._disconnected.set_exception(error)

    def watch(sock: Any) -> None:
        if sock.fileno() >= 0:
            loop.add_writer(sock.fileno(), write)

    def on_register_write(_client: object, _userdata: object, sock: Any) -> None:
        loop.call_soon_threadsafe(watch, sock)  # paho connects in a thread of its own

    return on_register_write


def connect_to_ip(paho: paho_client.Client, ip: str, port: int) -> None:
    """Let paho connect to one IP address of its host; TLS still asks for the host's name.

    `socket.create_connection` takes a host's next address only where this one refuses: one that is frozen takes the
    connection and reports nothing.
    """

    def connect() -> socket.socket:
        return socket.create_connection((ip, port), timeout=paho.connect_timeout)

    paho._create_socket_connection = connect  # type: ignore[method-assign]
