"""`POST /start` as FedOps' programs send it: without a body, without a port, from another container's MAC."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from fedops_mqtt.client.client_managers import ClientManagers
from fedops_mqtt.client.client_utils import FLClientStatus
from fedops_mqtt.client.http_shim import make_shim
from fedops_mqtt.core.client_state import LocalStart, StartDecision
from fedops_mqtt.protocol import Answer

MAC, OTHER = "02:00:00:00:00:01", "02:42:ac:11:00:02"


@contextmanager
def managers(port: bytes = b'{"port": 9000}', info: bytes = b'{"GL_Model_V": 7}') -> Iterator[str]:
    """FedOps' client and server manager in one, on a port of this machine; yields their URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = {"/FLSe/getPort/t": port, "/info/": info}[self.path]
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + said if said != b"no HTTP" else said)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


Starts = list[LocalStart]


async def post(
    starts: Starts, url: str | None, *, takes_any_mac: bool = False, managed: dict[str, Any] | None = None, **body: Any
) -> httpx.Response:
    """Send one `POST /start` to a shim whose managers are at `url`."""

    async def start(asked: LocalStart) -> StartDecision:
        starts.append(asked)
        return StartDecision(answer=Answer.ACCEPTED)

    known = {"client_manager_url": url, "server_manager_url": url, "task_id": "t"}
    shim = make_shim(
        view=lambda: FLClientStatus(client_mac=MAC),
        start=start,
        managers=ClientManagers(**known | (managed or {})),
        takes_any_mac=takes_any_mac,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(shim), base_url="http://shim") as http:
        return await http.post("/start", **body)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"json": {}},
        {"content": b"{}", "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {"json": {"client_mac": MAC.upper(), "more": [1]}},
        {"json": {"server_ip": None, "client_mac": None}},
    ],
)
async def test_a_start_that_names_no_server_uses_the_server_managers_address(body: dict[str, Any]) -> None:
    starts: Starts = []
    with managers() as url:
        answer = await post(starts, url, **body)
    assert answer.status_code == 200, answer.text
    assert starts == [LocalStart(server_ip="127.0.0.1:9000", gl_model=7)]


@pytest.mark.parametrize(
    ("server_ip", "managed", "where"),
    [
        (None, {"aggregation_host": "fl.example.org"}, "fl.example.org:9000"),
        (None, {"aggregation_host": "fl.example.org:8080", "server_manager_url": None}, "fl.example.org:8080"),
        ("10.0.0.7", {}, "10.0.0.7:9000"),
        ("10.0.0.7", {"aggregation_host": "fl.example.org"}, "fl.example.org:9000"),
        ("10.0.0.7:1", {"aggregation_host": "fl.example.org:8080"}, "10.0.0.7:1"),
    ],
)
async def test_where_an_unchanged_manager_sends_a_client(
    server_ip: str | None, managed: dict[str, Any], where: str
) -> None:
    starts: Starts = []
    with managers() as url:
        await post(starts, url, managed=managed, json={"server_ip": server_ip})
    assert [start.server_ip for start in starts] == [where]


@pytest.mark.parametrize(
    "port", [b'{"port": 0}', b'{"port": 65536}', b'{"port": "x"}', b'{"port": NaN}', b"[]", b"", b"\xff", b"no HTTP"]
)
async def test_a_server_manager_that_knows_no_port_is_named(port: bytes) -> None:
    starts: Starts = []
    with managers(port=port) as url:
        answer = await post(starts, url)
    assert (answer.status_code, starts) == (422, [])
    assert f"{url}/FLSe/getPort/t" in answer.json()["detail"]


async def test_without_a_server_manager_the_error_names_what_to_set() -> None:
    starts: Starts = []
    answer = await post(starts, None)
    assert (answer.status_code, starts) == (422, [])
    assert "FEDOPS_SERVER_MANAGER_URL" in answer.json()["detail"]


@pytest.mark.parametrize(
    "info", [b'{"GL_Model_V": -1}', b'{"GL_Model_V": 1e400}', b'{"GL_Model_V": null}', b"{}", b"\xff", b"no HTTP"]
)
async def test_a_client_manager_without_a_model_prevents_no_training(
    info: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    starts: Starts = []
    with managers(info=info) as url:
        assert (await post(starts, url)).status_code == 200
    assert starts == [LocalStart(server_ip="127.0.0.1:9000", gl_model=None)]
    assert [record.levelname for record in caplog.records if "model" in record.message] == ["WARNING"]


async def test_a_proxy_of_the_environment_stands_between_no_device_and_its_managers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    starts: Starts = []
    with managers(info=b'{"GL_Model_V": 3}') as url:
        assert (await post(starts, url)).status_code == 200
    assert starts == [LocalStart(server_ip="127.0.0.1:9000", gl_model=3)]


@pytest.mark.parametrize("word", ["trainFin", "trainFail", "flclient_out"])
async def test_a_manager_that_does_not_answer_http_is_skipped(word: Any, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"\x16\x03\x01 no HTTP\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        await ClientManagers(client_manager_url=url, server_manager_url=None, task_id="t").notify(word)
        thread.join()
    assert "was not notified" in caplog.text


async def test_a_start_for_another_mac_is_refused_with_what_to_do_and_taken_where_that_is_set() -> None:
    starts: Starts = []
    body = {"server_ip": "10.0.0.7:1", "client_mac": OTHER}
    refused = await post(starts, None, json=body)
    assert (refused.status_code, starts) == (409, [])
    assert all(fact in refused.json()["detail"] for fact in (MAC, f"--mac {OTHER}", "--http-any-mac"))
    assert (await post(starts, None, takes_any_mac=True, json=body)).status_code == 200
    assert starts == [LocalStart(server_ip="10.0.0.7:1")]
