"""What a client makes of the line's small answers that do not come whole."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from http_stand_in import Handler, serving

from fedops_mqtt.line.connection import BROKEN, Connector


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Give the address of a server that answers each request so, and closes the connection."""

    class Answering(Handler):
        def do_GET(self) -> None:
            self.wfile.write(answer)

    with serving(Answering) as server_ip:
        yield server_ip


def ask(server_ip: str) -> bytes:
    connection = Connector(server_ip, ca_file=None, connect_s=300).connection()
    try:
        return connection.ask("GET", "/line/hello", headers={}, timeout_s=300)
    finally:
        connection.close()


@pytest.mark.parametrize("status", ["200 OK", "409 Conflict"])
@pytest.mark.parametrize("body", [b"", b'{"is_done":'])
def test_an_answer_that_is_cut_off_is_a_broken_connection(status: str, body: bytes) -> None:
    with answering(f"HTTP/1.1 {status}\r\ncontent-length: 60\r\n\r\n".encode() + body) as server_ip:
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask(server_ip)
        assert isinstance(caught.value, BROKEN)


def test_an_answer_that_is_whole_is_returned() -> None:
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") as server_ip:
        assert ask(server_ip) == b"{}"
