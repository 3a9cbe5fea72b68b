"""Who may come in at the shim: this machine, a bearer token, a client certificate; nobody else."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from ssl import SSLContext, create_default_context

import httpx
import pytest
from client_testbed import PATIENCE_S

from fedops_mqtt.client.client_managers import ClientManagers
from fedops_mqtt.client.client_utils import FLClientStatus
from fedops_mqtt.client.http_shim import access_rules, allowed_servers, make_shim, serving
from fedops_mqtt.core.client_state import LocalStart, StartDecision
from fedops_mqtt.enrolment.authority import Credentials, issue, make_authority
from fedops_mqtt.protocol import Answer
from fedops_mqtt.runtime.machine import ExposedError, TlsFilesError
from fedops_mqtt.runtime.settings import ClientSettings

EVERYWHERE = "0.0.0.0:0"
TOKEN = "a-token-of-this-test"
ELSEWHERE = "10.0.0.7:9000"
START = {"server_ip": ELSEWHERE, "client_mac": "02:00:00:00:00:01"}

Starts = list[LocalStart]


@asynccontextmanager
async def shim(address: str, starts: Starts | None = None, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    made = ClientSettings(http=address, **settings)  # type: ignore[arg-type]

    async def start(asked: LocalStart) -> StartDecision:
        (starts if starts is not None else []).append(asked)
        return StartDecision(answer=Answer.ACCEPTED)

    app = make_shim(
        view=lambda: FLClientStatus(client_mac=START["client_mac"]),
        start=start,
        managers=ClientManagers.from_settings(made, "t"),
        may_start_at=allowed_servers(made),
        starts_by_get=made.http_get_start,
    )
    async with serving(app, address, access_rules(made)) as where:
        port = where.rpartition(":")[2]
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE_S
        ) as client:
            yield client


@pytest.fixture
def certify(tmp_path: Path) -> Callable[..., Credentials]:
    now = datetime.now(UTC)
    authority = make_authority("test", now)
    (tmp_path / "ca.crt").write_bytes(authority.certificate)

    def make(name: str, *hosts: str) -> Credentials:
        made = issue(authority, name, hosts=hosts, now=now, days=1)
        (tmp_path / f"{name}.crt").write_bytes(made.certificate)
        (tmp_path / f"{name}.key").write_bytes(made.key)
        return made

    make("shim", "127.0.0.1")
    return make


async def test_on_loopback_this_machine_needs_no_token() -> None:
    async with shim("127.0.0.1:0") as client:
        assert (await client.get("/online")).status_code == 200


async def test_beyond_loopback_it_refuses_to_start_without_a_token() -> None:
    with pytest.raises(ExposedError, match="FEDOPS_MQTT_HTTP_TOKEN"):
        async with shim(EVERYWHERE):
            pass


async def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "no-text").write_bytes(b"\xff\n")
    with pytest.raises(TlsFilesError, match=re.escape(f"no HTTPS with {file}, {file}: ")):
        async with shim("127.0.0.1:0", http_cert_file=file, http_key_file=file):
            pass


async def test_with_a_token_only_its_bearer_is_admitted() -> None:
    async with shim(EVERYWHERE, http_token=TOKEN) as client:
        for authorization in (None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", f"Bearer {TOKEN}x"):
            headers = {"Authorization": authorization} if authorization else {}
            assert (await client.get("/online", headers=headers)).status_code == 401
        assert (await client.get("/online", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 200


@pytest.mark.parametrize("address", ["127.0.0.1:0", EVERYWHERE])
async def test_a_start_names_only_allowed_servers_on_loopback_too(address: str) -> None:
    starts: Starts = []
    async with shim(address, starts, http_token=TOKEN) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        refused = await client.post("/start", json=START)
    assert (refused.status_code, starts) == (403, [])
    async with shim(address, starts, http_token=TOKEN, server_ip_allow="fl.example.org, 10.0.0.0/24") as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert (await client.post("/start", json=START)).status_code == 200
        assert (await client.post("/start", json=START | {"server_ip": "10.0.1.7:9000"})).status_code == 403
    assert [start.server_ip for start in starts] == [ELSEWHERE]


@pytest.mark.parametrize(
    ("server_ip", "is_allowed"),
    [
        ("127.0.0.1:9000", True),
        ("[::1]:9000", True),
        ("localhost:9000", True),
        ("broker.example.org:9000", True),
        ("manager.example.org:9000", True),
        ("fl.example.org:9000", True),
        ("evil.example.org:9000", False),
        (":9000", False),
        ("0.0.0.0:9000", False),
    ],
)
def test_without_a_list_servers_are_here_or_on_the_hosts_that_the_settings_name(
    server_ip: str, is_allowed: bool
) -> None:
    settings = ClientSettings(
        broker="mqtts://device:secret@broker.example.org",
        server_manager_url="http://manager.example.org:8000",
        aggregation_host="fl.example.org",
    )
    assert allowed_servers(settings)(server_ip) is is_allowed
    assert allowed_servers(ClientSettings())("evil.example.org:9000") is False


@pytest.mark.parametrize(
    ("server_ip", "allow", "is_allowed"),
    [
        ("fl.example.org:1", "fl.example.org", True),
        ("FL.example.org:1", "fl.example.org:1", True),
        ("fl.example.org:2", "fl.example.org:1", False),
        ("evil-fl.example.org:1", "fl.example.org", False),
        ("fl.example.org.evil.net:1", "fl.example.org", False),
        ("[2001:db8::7]:1", "2001:db8::/32", True),
        ("10.0.0.7:1", "10.0.0.7", True),
        ("10.0.0.70:1", "10.0.0.7", False),
    ],
)
def test_the_list_of_allowed_servers_is_applied(server_ip: str, allow: str, is_allowed: bool) -> None:
    assert allowed_servers(ClientSettings(server_ip_allow=allow))(server_ip) is is_allowed


async def test_a_page_of_another_origin_gets_nothing_by_a_name_or_address_of_this_machine() -> None:
    starts: Starts = []
    async with shim("127.0.0.1:0", starts, http_get_start=True) as client:
        for host in (
            *("evil.example.org", "0.0.0.0", "0.0.0.0:8003", "[::ffff:127.0.0.1]:8003", "[::ffff:7f00:1]", "[::]:8003"),
            *("10.0.0.7", "localhost.evil.example.org", "127.0.0.1.evil.example.org", "0", "2130706433"),
        ):
            answer = await client.get("/start/127.0.0.1:9000", headers={"Host": host})
            assert (host, answer.status_code) == (host, 421)
        for host in ("localhost", "LOCALHOST:8003", "127.0.0.1", "127.0.0.2", "[::1]:8003"):
            assert (await client.get("/online", headers={"Host": host})).status_code == 200
    assert starts == []


async def test_a_get_starts_nothing_unless_a_setting_asks_for_fedops_first_generation() -> None:
    starts: Starts = []
    async with shim("127.0.0.1:0", starts) as client:
        assert (await client.get("/start/127.0.0.1:9000")).status_code == 403
        assert (await client.head("/start/127.0.0.1:9000")).status_code == 405
    assert starts == []
    async with shim("127.0.0.1:0", starts, http_get_start=True) as client:
        assert (await client.get(f"/start/{ELSEWHERE}")).status_code == 403
        assert (await client.get("/start/127.0.0.1:9000", headers={"Sec-Fetch-Site": "none"})).status_code == 403
        assert starts == []
        assert (await client.get("/start/127.0.0.1:9000")).status_code == 200
    assert [start.server_ip for start in starts] == ["127.0.0.1:9000"]


@pytest.mark.parametrize(
    "head", ["Content-Length: {more}", "Content-Length: {more}\r\nExpect: 100-continue", "Transfer-Encoding: chunked"]
)
async def test_a_request_with_a_truncated_body_is_refused(head: str) -> None:
    starts: Starts = []
    body = json.dumps(START | {"server_ip": "127.0.0.1:9000"}).encode()
    async with shim("127.0.0.1:0", starts) as client:
        part = body if "Length" in head else b"%x\r\n%b\r\n" % (len(body), body)
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        fields = head.format(more=len(body) + 1)
        writer.write(f"POST /start HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n".encode() + part)
        await writer.drain()
        while (await client.get("/online")).status_code != 200:
            pass
        writer.close()
        assert b" 200 " not in await reader.read()
        assert (await client.get("/online")).status_code == 200
    assert starts == []


async def test_requests_of_another_origin_are_refused_unless_it_is_set() -> None:
    origin = {"Origin": "https://page.example.org"}
    starts: Starts = []
    async with shim("127.0.0.1:0", starts) as client:
        refused = await client.get("/online", headers=origin)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
        assert (await client.post("/start", json=START, headers=origin)).status_code == 403
        assert starts == []
    async with shim("127.0.0.1:0", http_cors="https://page.example.org", http_token=TOKEN) as client:
        preflight = await client.options("/online", headers=origin | {"Access-Control-Request-Method": "GET"})
        assert preflight.headers["access-control-allow-origin"] == origin["Origin"]
        assert (await client.get("/online", headers=origin)).status_code == 401


async def test_a_large_body_is_cut_off_with_or_without_a_content_length() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 16384

    starts: Starts = []
    async with shim("127.0.0.1:0", starts) as client:
        assert (await client.post("/start", content=b" " * 70_000)).status_code == 413
        assert (await client.post("/start", content=endless())).status_code == 413
    assert starts == []


async def test_a_client_certificate_is_admitted_too(tmp_path: Path, certify: Callable[..., Credentials]) -> None:
    certify("operator")
    files = {
        "http_cert_file": tmp_path / "shim.crt",
        "http_key_file": tmp_path / "shim.key",
        "http_client_ca_file": tmp_path / "ca.crt",
    }
    async with shim(EVERYWHERE, **files) as plain:
        url = str(plain.base_url).replace("http://", "https://") + "/online"
        async with httpx.AsyncClient(verify=trusting(tmp_path), trust_env=False, timeout=PATIENCE_S) as stranger:
            with pytest.raises(httpx.TransportError):
                await stranger.get(url)
        mine = trusting(tmp_path)
        mine.load_cert_chain(tmp_path / "operator.crt", tmp_path / "operator.key")
        async with httpx.AsyncClient(verify=mine, trust_env=False, timeout=PATIENCE_S) as operator:
            assert (await operator.get(url)).status_code == 200


def trusting(folder: Path) -> SSLContext:
    return create_default_context(cafile=folder / "ca.crt")
