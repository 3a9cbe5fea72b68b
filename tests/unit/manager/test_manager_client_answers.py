"""What a manager's client makes of answers that are none of a manager's."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from fedops_mqtt import AsyncManagerClient, ManagerClient
from fedops_mqtt.manager.client import ManagerRefusedError, ManagerUnreachableError, ManagerUrlError


class Odd(BaseHTTPRequestHandler):
    """Answers whatever the test has set."""

    answer: ClassVar[tuple[int, bytes]] = (200, b"")

    def do_GET(self) -> None:
        status, body = self.answer
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *parts: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


PROBLEM = json.dumps({"title": "Forbidden", "status": 403, "detail": "the token is not the manager's"}).encode()
ODD = [
    ((200, b"<html>"), ManagerUrlError, "not a manager"),
    ((200, b'{"status": "fine"}'), ManagerUrlError, "another form"),
    ((200, b""), ManagerUrlError, "another form"),
    ((200, b"\xff\xfe"), ManagerUrlError, "not a manager"),
    ((500, b"[]"), ManagerRefusedError, "HTTP status 500"),
    ((403, PROBLEM), ManagerRefusedError, "the token is not the manager's"),
]


@pytest.mark.parametrize(("answer", "error", "fact"), ODD)
async def test_an_odd_answer_is_an_error_that_says_so(
    url: str, answer: tuple[int, bytes], error: type[Exception], fact: str
) -> None:
    Odd.answer = answer
    with ManagerClient(url) as manager, pytest.raises(error, match=fact):
        manager.health()
    async with AsyncManagerClient(url) as manager:
        with pytest.raises(error, match=fact):
            await manager.health()


@pytest.mark.parametrize("url", ["http://", "ftp://host:1", "http://[::1", "host:8080", "http://\x00"])
def test_what_is_no_url_is_said(url: str) -> None:
    with pytest.raises((ManagerUrlError, ManagerUnreachableError)), ManagerClient(url) as manager:
        manager.health()


def test_a_manager_that_is_not_there_is_said() -> None:
    with (
        ManagerClient("http://127.0.0.1:1") as manager,
        pytest.raises(ManagerUnreachableError, match=r"127\.0\.0\.1:1"),
    ):
        manager.runs()
