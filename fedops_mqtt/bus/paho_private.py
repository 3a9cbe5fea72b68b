"""What paho 2.2 and aiomqtt 2.5.1 do with their own insides, done otherwise.

Private and hooked on purpose: `paho.Client._handle_publish`, `._in_packet`, `._sock_send` and
`._create_socket_connection`, `aiomqtt.Client._loop`, `._client`, `._disconnected`, `._misc_task` and `._misc_loop`, and
paho's `on_socket_open` and `on_socket_register_write`.
"""

import select
import socket
import ssl
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


class SocketWatcher:
    """Lets the loop read and write paho's socket as aiomqtt does, but while it is open, and to a connection's end.

    aiomqtt 2.5.1 keeps the socket's bare number for the loop's next turn: by then it is nobody's, which is an error
    that the loop prints with a traceback, or another connection's, whose writer would spin for ever.

    uvloop 0.23 calls the reader of a connection that was reset once more and then never again, and paho 2.2 reads one
    packet a call. Where a packet had come before the reset, the rest of them and the end would be missed until
    keep-alive, and the next write would be an error with a traceback.

    A write that fails because the broker has left does not tell why; what the broker sent before it left does (a TLS
    alert, a CONNACK, a DISCONNECT), and paho would close the socket with that unread.
    """

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self._paho = client._client
        self._loop = client._loop
        self._has_more: Callable[[], bool] = lambda: False
        self._send = self._paho._sock_send
        self._paho._sock_send = self._send_or_read_why  # type: ignore[method-assign]
        self._paho.on_socket_open = self._on_open
        self._paho.on_socket_register_write = self._on_register_write

    # paho connects in a thread of its own

    def _on_open(self, _paho: object, _userdata: object, sock: Any) -> None:
        self._loop.call_soon_threadsafe(self._begin_reading, sock)

    def _on_register_write(self, _paho: object, _userdata: object, sock: Any) -> None:
        self._loop.call_soon_threadsafe(self._begin_writing, sock)

    def _begin_reading(self, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._has_more = _more_to_read(sock)
            self._loop.add_reader(sock.fileno(), self._read)
            self._client._misc_task = self._loop.create_task(self._client._misc_loop())

    def _begin_writing(self, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write)

    def _read(self) -> None:
        try:
            self._paho.loop_read()
            self._read_on()
        except Exception as error:
            self._end(error)

    def _read_on(self) -> None:
        while self._paho.socket() is not None and self._has_more():
            self._paho.loop_read()

    def _write(self) -> None:
        try:
            self._paho.loop_write()
        except Exception as error:
            self._end(error)

    def _send_or_read_why(self, buf: bytes | bytearray) -> int:
        try:
            return self._send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self._read_on()
            if self._paho.socket() is None:  # its end was read: for paho there is nothing to write now
                raise BlockingIOError from error
            raise

    def _end(self, error: Exception) -> None:
        if not self._client._disconnected.done():
            self._client._disconnected.set_exception(error)


def _more_to_read(sock: Any) -> Callable[[], bool]:
    """Return what tells whether there is more to read of which the loop says nothing.

    TLS may have decrypted more than was read; what came before a reset can be read until that fails.
    """
    poll = select.poll()
    poll.register(sock, 0)  # errors and hang-ups are always reported
    if isinstance(sock, ssl.SSLSocket):
        return lambda: bool(sock.pending() or poll.poll(0))
    return lambda: bool(poll.poll(0))


def connect_to_ip(paho: paho_client.Client, ip: str, port: int) -> None:
    """Let paho connect to one IP address of its host; TLS still asks for the host's name.

    `socket.create_connection` takes a host's next address only where this one refuses: one that is frozen takes the
    connection and reports nothing.
    """

    def connect() -> socket.socket:
        return socket.create_connection((ip, port), timeout=paho.connect_timeout)

    paho._create_socket_connection = connect  # type: ignore[method-assign]
