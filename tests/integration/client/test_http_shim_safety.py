"""Who may come in at the shim: this machine, a bearer token, a client certificate; nobody else."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from ssl import SSLContext, create_default_context

import httpx
import pytest

from fedops_mqtt.client.client_utils import FLClientStatus
from fedops_mqtt.client.http_shim import ShimExposedError, allowed_servers, door_rules, make_shim, serving
from fedops_mqtt.core.client_events import LocalStart, Verdict
from fedops_mqtt.enrolment.authority import Credentials, issue, make_authority
from fedops_mqtt.protocol import Answer
from fedops_mqtt.settings import ClientSettings

EVERYWHERE = "0.0.0.0:0"
TOKEN = "a-token-of-this-test"
START = {"server_ip": "10.0.0.7:9000", "client_mac": "02:00:00:00:00:01"}

Starts = list[LocalStart]


@asynccontextmanager
async def shim(address: str, starts: Starts | None = None, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    made = ClientSettings(http=address, **settings)  # type: ignore[arg-type]

    async def start(asked: LocalStart) -> Verdict:
        (starts if starts is not None else []).append(asked)
        return Verdict(answer=Answer.ACCEPTED)

    app = make_shim(
        view=lambda: FLClientStatus(client_mac=START["client_mac"]),
        start=start,
        may_start_at=allowed_servers(address, made.server_ip_allow),
    )
    async with serving(app, address, door_rules(made)) as where:
        port = where.rpartition(":")[2]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
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
    with pytest.raises(ShimExposedError, match="FEDOPS_MQTT_HTTP_TOKEN"):
        async with shim(EVERYWHERE):
            pass


async def test_with_a_token_only_its_bearer_comes_in() -> None:
    async with shim(EVERYWHERE, http_token=TOKEN) as client:
        for authorization in (None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", f"Bearer {TOKEN}x"):
            headers = {"Authorization": authorization} if authorization else {}
            assert (await client.get("/online", headers=headers)).status_code == 401
        assert (await client.get("/online", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 200


async def test_a_start_from_the_network_names_only_allowed_servers() -> None:
    starts: Starts = []
    async with shim(EVERYWHERE, starts, http_token=TOKEN) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        refused = await client.post("/start", json=START)
    assert (refused.status_code, starts) == (403, [])
    async with shim(EVERYWHERE, starts, http_token=TOKEN, server_ip_allow="fl.example.org, 10.0.0.0/24") as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert (await client.post("/start", json=START)).status_code == 200
        assert (await client.post("/start", json=START | {"server_ip": "10.0.1.7:9000"})).status_code == 403
    assert [start.server_ip for start in starts] == ["10.0.0.7:9000"]


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
def test_the_list_of_allowed_servers_means_what_it_says(server_ip: str, allow: str, is_allowed: bool) -> None:
    assert allowed_servers(EVERYWHERE, allow)(server_ip) is is_allowed


async def test_a_web_page_elsewhere_gets_nothing_by_a_name_that_points_here() -> None:
    async with shim("127.0.0.1:0") as client:
        answer = await client.get("/online", headers={"Host": "evil.example.org"})
        assert answer.status_code == 421
        for host in ("localhost", "localhost:8003", "127.0.0.1", "[::1]:8003"):
            assert (await client.get("/online", headers={"Host": host})).status_code == 200


async def test_no_other_origin_may_ask_unless_it_is_set() -> None:
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


async def test_a_large_body_is_cut_off_whether_it_says_so_or_not() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 16384

    starts: Starts = []
    async with shim("127.0.0.1:0", starts) as client:
        assert (await client.post("/start", content=b" " * 70_000)).status_code == 413
        assert (await client.post("/start", content=endless())).status_code == 413
    assert starts == []


async def test_a_client_certificate_opens_the_door_too(tmp_path: Path, certify: Callable[..., Credentials]) -> None:
    certify("operator")
    files = {
        "http_cert_file": tmp_path / "shim.crt",
        "http_key_file": tmp_path / "shim.key",
        "http_client_ca_file": tmp_path / "ca.crt",
    }
    async with shim(EVERYWHERE, **files) as plain:
        url = str(plain.base_url).replace("http://", "https://") + "/online"
        async with httpx.AsyncClient(verify=trusting(tmp_path), trust_env=False) as stranger:
            with pytest.raises(httpx.TransportError):
                await stranger.get(url)
        mine = trusting(tmp_path)
        mine.load_cert_chain(tmp_path / "operator.crt", tmp_path / "operator.key")
        async with httpx.AsyncClient(verify=mine, trust_env=False) as operator:
            assert (await operator.get(url)).status_code == 200


def trusting(folder: Path) -> SSLContext:
    return create_default_context(cafile=folder / "ca.crt")
