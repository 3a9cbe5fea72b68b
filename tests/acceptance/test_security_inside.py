"""The attacks of docs/security.md that a broker cannot stop: readers, tokens and limits of ours do."""

import asyncio
import http.client
import io
import json
import pickle
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from secure_site import MANAGER, STANDBY, TASK, A, B, SecureSite, make_fleet, next_event
from yard import Yard

from fedops_mqtt.bus import Connection, Malformed, Mosquitto, Received
from fedops_mqtt.core.fencing import LAST_SEQ
from fedops_mqtt.device.journal import identity_dir
from fedops_mqtt.line import wire
from fedops_mqtt.line.access import make_token
from fedops_mqtt.line.codec import encode_message, read_message
from fedops_mqtt.line.errors import FrameError
from fedops_mqtt.line.server import LineServer, LineTls
from fedops_mqtt.protocol import (
    Answer,
    ClientCondition,
    ClientStatus,
    IdentityError,
    MismatchedMessageError,
    StartTrigger,
    encode,
    topics,
    utc_now,
)
from fedops_mqtt.runtime.files import write_private
from fedops_mqtt.store.versions import ModelStore

ROOT = Path(__file__).resolve().parents[2]
SECRET = b"a run's secret of 32 random bytes"
NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SecureSite]:
    made = make_fleet(tmp_path / "fleet")
    async with Mosquitto(config=made.broker_folder / "mosquitto.conf") as broker:
        yield SecureSite(made, broker)


def status_of(mac: str) -> ClientStatus:
    return ClientStatus(
        status=ClientCondition.ONLINE, task_id=TASK, client_mac=mac, client_name="", instance="x", epoch=1,
        seq=LAST_SEQ - 1, at=utc_now(),
    )  # fmt: skip


async def test_readers_refuse_a_status_about_another_device_that_the_broker_delivers(
    site: SecureSite,
) -> None:
    own = str(topics.client_status(TASK, A))
    async with site.reading(STANDBY, "fedops/v1/+/clients/+/status") as manager, site.bare_client(A) as device:
        await device.publish(own, encode(status_of(B)), qos=1)
        await device.publish(own, encode(status_of(A)), qos=1)
        forged = await next_event(manager, lambda event: isinstance(event, Malformed | Received))
        honest = await next_event(manager, lambda event: isinstance(event, Malformed | Received))
    assert isinstance(forged, Malformed)
    assert isinstance(forged.error, MismatchedMessageError)
    assert isinstance(honest, Received)


class Commander:
    """A manager by hand, and what one device says to it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def start(self, run_id: str, instance: str, *, attempt: int = 1) -> StartTrigger:
        trigger = StartTrigger(
            run_id=run_id, attempt=attempt, launch=1, term=1, task_id=TASK, client_mac=A, instance=instance,
            server_ip=NOWHERE, token="captured", at=utc_now(),
        )  # fmt: skip
        await self.publish(trigger)
        return trigger

    async def publish(self, trigger: StartTrigger) -> None:
        await self._connection.publish(topics.client_start(TASK, A), trigger)

    async def next_status(self, *conditions: ClientCondition) -> ClientStatus:
        def is_it(event: object) -> bool:
            return (
                isinstance(event, Received)
                and isinstance(event.message, ClientStatus)
                and event.message.status in conditions
            )

        event = await next_event(self._connection, is_it)
        assert isinstance(event, Received)
        assert isinstance(event.message, ClientStatus)
        return event.message


@pytest.mark.long
async def test_a_replayed_trigger_starts_nothing(yard: Yard, site: SecureSite) -> None:
    settings = {"state_dir": yard.folder / "device", "join_limit_s": 0.5, "heartbeat_s": 0.5}
    async with site.reading(MANAGER, str(topics.client_status(TASK, A))) as connection:
        commander = Commander(connection)
        first = await yard.start("client", "--config", str(site.bundle(A)), **settings)
        online = await commander.next_status(ClientCondition.ONLINE)
        captured = await commander.start("r1", online.instance)
        await commander.next_status(ClientCondition.TRAIN_STARTED)
        failed = await commander.next_status(ClientCondition.TRAIN_FAILED)

        await commander.publish(captured)
        # The device answers in its next statuses; heartbeats follow, and none of them is of a second training.
        for _ in range(3):
            again = await commander.next_status(*ClientCondition)
            assert (again.status, again.last_run) == (ClientCondition.TRAIN_FAILED, failed.last_run)

        await first.end()
        await yard.start("client", "--config", str(site.bundle(A)), **settings)
        while (reborn := await commander.next_status(*ClientCondition)).instance == online.instance:
            pass
        await commander.publish(captured)
        for _ in range(3):
            later = await commander.next_status(*ClientCondition)
            assert later.run is None
        assert later.instance == reborn.instance
        assert later.last_trigger is not None
        assert (later.last_trigger.run_id, later.last_trigger.attempt) == ("r1", 1)

        await commander.start("r2", online.instance)
        while (answered := await commander.next_status(*ClientCondition)).last_trigger is None or (
            answered.last_trigger.run_id != "r2"
        ):
            pass
        assert answered.last_trigger.answer == Answer.REJECTED, "a trigger meant for the daemon before this one"


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[LineServer, Path]]:
    """An FL server's line with the certificate that `fleet enrol --role server` made."""
    folder = make_fleet(tmp_path / "fleet").folder
    own = folder / "bundles" / "server-digits"
    tls = LineTls(cert_file=own / "client.crt", key_file=own / "client.key")
    with LineServer(run_id="r1", run_secret=SECRET, tls=tls) as server:
        yield server, folder / "ca.crt"


def ask_to_join(line: tuple[LineServer, Path], token: str | None, mac: str = A) -> int:
    server, ca_file = line
    host, _, port = server.address.rpartition(":")
    context = ssl.create_default_context(cafile=ca_file)
    with closing(http.client.HTTPSConnection(host, int(port), timeout=300, context=context)) as connection:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        body = json.dumps({"client_mac": mac, "instance": "x", "attempt": 1})
        connection.request("POST", wire.JOIN_PATH, body=body, headers=headers)
        return connection.getresponse().status


def test_a_line_admits_the_clients_of_its_run_only(line: tuple[LineServer, Path]) -> None:
    right = make_token(SECRET, "r1", A)
    wrong = [
        None,
        "",
        make_token(SECRET, "r2", A),
        make_token(SECRET, "r1", B),
        make_token(b"another secret", "r1", A),
        right.upper(),
        right[:-1],
    ]
    assert [ask_to_join(line, token) for token in wrong] == [401] * len(wrong)
    assert ask_to_join(line, right, mac=B) == 401
    assert line[0].members == {}
    assert ask_to_join(line, right) == 200


def test_a_device_cannot_serve_a_line_with_its_own_certificate(tmp_path: Path) -> None:
    folder = make_fleet(tmp_path / "fleet").folder
    own = folder / "bundles" / A.replace(":", "-")
    tls = LineTls(cert_file=own / "client.crt", key_file=own / "client.key")
    with (
        LineServer(run_id="r1", run_secret=SECRET, tls=tls) as impostor,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ask_to_join((impostor, folder / "ca.crt"), make_token(SECRET, "r1", A))


class Bomb:
    """Pickled, it would run a command of the sender's choice where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_model_that_would_run_code_where_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it-went-off"
    stream = io.BytesIO()
    np.save(stream, np.array([Bomb(path)], dtype=object), allow_pickle=True)
    for data in (stream.getvalue(), pickle.dumps(Bomb(path))):
        for dtype, stype in (("object", "numpy.ndarray"), ("float32", "numpy.ndarray")):
            poisoned = Array(dtype=dtype, shape=(1,), stype=stype, data=data)
            content = RecordDict({"arrays": ArrayRecord({"layer": poisoned})})
            message = Message(content, dst_node_id=2, message_type="train")
            frame = encode_message(message)
            sent = io.BytesIO(b"".join(frame.chunks(max_bytes=1 << 20)))
            with pytest.raises(FrameError):
                read_message(sent.read, num_bytes=frame.num_bytes, max_bytes=1 << 20)
    assert not path.exists()


@pytest.mark.parametrize("name", ["..", "../../etc/passwd", "/etc/passwd", "a/b", "a\0b", "", ".", "x" * 65, "+", "#"])
def test_a_name_cannot_lead_out_of_its_folder_or_topic(tmp_path: Path, name: str) -> None:
    for use in (
        lambda: topics.client_status(name, A),
        lambda: topics.run_status(TASK, name),
        lambda: identity_dir(tmp_path, name, A),
        lambda: identity_dir(tmp_path, TASK, name),
        lambda: StartTrigger.model_validate({"run_id": name}),
        lambda: ModelStore(str(tmp_path), task_id=name, model_name="m"),
        lambda: ModelStore(str(tmp_path), task_id=TASK, model_name=name),
    ):
        with pytest.raises((IdentityError, ValueError)):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_runs_secret_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_private(tmp_path / "secrets" / "r1", SECRET.hex().encode())
    assert (tmp_path / "secrets" / "r1").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


@pytest.mark.long
async def test_a_message_of_a_hundred_megabytes_to_the_shim_costs_the_device_nothing(
    yard: Yard, site: SecureSite
) -> None:
    device = await yard.start(
        "client", "--config", str(site.bundle(A)), state_dir=yard.folder / "device", http="127.0.0.1:0"
    )
    port = int((await device.until_printed(r"HTTP shim listens.*:(\d+)")).group(1))
    before = psutil.Process(device.process.pid).memory_info().rss
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /start HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n")
    assert b"413" in await reader.readline()
    writer.close()
    assert psutil.Process(device.process.pid).memory_info().rss - before < 10_000_000


_SECRETS = (
    rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    rb"\bAKIA[0-9A-Z]{16}\b",
    rb"\bgh[pousr]_[A-Za-z0-9]{36}\b",
    rb"\bxox[abp]-[A-Za-z0-9-]{10,}",
    rb"^[\w.-]+:\$[67]\$\d+\$[A-Za-z0-9+/=]+\$",
    rb"(?i)(?:password|token|secret|api_?key)\s*=\s*[\"'][A-Za-z0-9+/_-]{24,}[\"']",
)
"""Private keys, access keys of clouds and forges, mosquitto's password entries, long literals given to such names."""


def files_of_the_project() -> list[Path]:
    """What git tracks; in an unpacked archive, everything but hidden folders, of tools and of installations."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
        return [ROOT / name.decode() for name in listed.split(b"\0") if name]
    folders = [each for each in ROOT.iterdir() if each.is_dir() and not each.name.startswith(".")]
    return [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*") if path.suffix != ".pyc")]


def test_no_secret_is_in_the_repository() -> None:
    paths = files_of_the_project()
    assert len(paths) > 50
    found = [
        (str(path), match.group(0)[:30])
        for path in paths
        if path.is_file() and path != Path(__file__)
        for pattern in _SECRETS
        for match in re.finditer(pattern, path.read_bytes(), re.MULTILINE)
    ]
    assert found == []
