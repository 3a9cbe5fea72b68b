"""`fedops-mqtt doctor` as a person runs it: quiet about a healthy fleet, and right about what is wrong with another."""

import asyncio
import io
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
from secure_site import MANAGER, SCREEN, SERVER, STANDBY, TASK, A, B, SecureSite, make_fleet
from yard import Yard

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.cli.entry import run
from fedops_mqtt.enrolment import EnrolmentRequest, Role
from fedops_mqtt.protocol import topics
from fedops_mqtt.runtime.systemd import ExitCode

Findings = list[dict[str, str]]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SecureSite]:
    made = make_fleet(tmp_path / "fleet")
    async with Mosquitto(config=made.broker_folder / "mosquitto.conf") as broker:
        yield SecureSite(made, broker)


async def examine(yard: Yard, *arguments: str, code: int = ExitCode.OK) -> Findings:
    """Run the verb in this process: an interpreter for each question would take a second."""
    with redirect_stdout(io.StringIO()) as said, patch.dict(os.environ):  # --config is told to child processes there
        try:
            ended = await asyncio.to_thread(run, ["doctor", "--json", "--state-dir", str(yard.folder), *arguments])
        except SystemExit as ending:
            ended = int(ending.code or 0)
    assert ended == code, said.getvalue()
    return [json.loads(line) for line in said.getvalue().splitlines()]


def troubles(findings: Findings) -> list[str]:
    return [f"{each['check']}: {each['found']}" for each in findings if each["level"] == "problem"]


OTHERS = (STANDBY, SERVER, SCREEN, "boss", "site-a", "site-b")
EVERYTHING = {"files", "clock", "disk", "port", "broker", "TLS", "credentials", "ACL", "queues"}


@pytest.mark.parametrize(
    "who",
    [
        A,
        MANAGER,
        *(pytest.param(who, marks=pytest.mark.long) for who in (STANDBY, SERVER, SCREEN, "boss", "site-a", "site-b")),
    ],
)
async def test_it_finds_nothing_wrong_with_a_healthy_fleet(yard: Yard, site: SecureSite, who: str) -> None:
    site.fleet.enrol(EnrolmentRequest(role=Role.MANAGER, name="boss"))
    site.fleet.enrol(EnrolmentRequest(role=Role.BRIDGE, name="site-a"))
    site.fleet.enrol(EnrolmentRequest(role=Role.BRIDGE, name="site-b", tasks=["letters", TASK]))
    await site.reload()
    async with site.bare_client(B) as other, site.bare_client(SERVER) as server:
        await other.publish(str(topics.client_status(TASK, B)), b"x", qos=1, retain=True)
        await server.publish(str(topics.server_status(TASK)), b"x", qos=1, retain=True)
    findings = await examine(yard, "--config", str(site.bundle(who)))
    assert troubles(findings) == []
    assert {each["check"] for each in findings} >= EVERYTHING


async def test_doctor_detects_a_port_that_is_taken(yard: Yard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        findings = await examine(yard, "--no-bus", "--http", address, "--listen", "127.0.0.1:0")
    assert [(each["level"], each["found"]) for each in findings if each["check"] == "port"] == [
        ("warning", f"{address}: Address already in use")
    ]
    assert all(each["advice"] for each in findings if each["level"] == "warning")


async def test_doctor_detects_a_state_folder_that_cannot_be_written(yard: Yard) -> None:
    doctor = await yard.run("doctor", "--json", "--no-bus", "--state-dir", "/proc/no-such-folder")
    assert doctor.process.returncode == ExitCode.FAILED
    found = [json.loads(line) for line in doctor.stdout.splitlines()]
    assert [each["found"] for each in found if each["check"] == "disk"] == [
        "/proc cannot be written: No such file or directory"
    ]


@pytest.mark.long
async def test_doctor_detects_an_acl_that_allows_a_device_too_much(yard: Yard, site: SecureSite) -> None:
    (site.fleet.broker_folder / "acl").write_text(f"user {A.replace(':', '-')}\ntopic readwrite #\n")
    await site.reload()
    async with site.bare_client(A) as device:
        await device.publish(str(topics.client_status("digits", B)), b"x", qos=1, retain=True)
    findings = await examine(yard, "--config", str(site.bundle(A)), code=ExitCode.FAILED)
    found = troubles(findings)
    assert [each for each in found if "may publish" in each and "/status" in each]
    assert [each for each in found if "may read" in each]
    assert all(each["advice"] for each in findings if each["level"] == "problem")


async def test_doctor_detects_an_acl_that_allows_a_device_too_little(yard: Yard, site: SecureSite) -> None:
    (site.fleet.broker_folder / "acl").write_text("user nobody\ntopic read nothing\n")
    await site.reload()
    findings = await examine(yard, "--config", str(site.bundle(A)), code=ExitCode.FAILED)
    assert [each for each in troubles(findings) if "may not publish" in each and "metrics" in each]


async def test_doctor_reports_a_revoked_certificate(yard: Yard, site: SecureSite) -> None:
    site.fleet.revoke(A)
    await site.reload()
    findings = await examine(yard, "--config", str(site.bundle(A)), code=ExitCode.FAILED)
    advice = [each["advice"] for each in findings if each["level"] == "problem" and "revoked" in each["found"]]
    assert advice == ["this certificate was taken back: enrol the identity again"], findings


async def test_doctor_detects_files_that_others_can_read_and_a_key_of_another_identity(
    yard: Yard, site: SecureSite
) -> None:
    key = site.bundle(A).with_name("client.key")
    key.write_bytes(site.bundle(B).with_name("client.key").read_bytes())
    key.chmod(0o644)
    found = troubles(await examine(yard, "--config", str(site.bundle(A)), "--no-bus", code=ExitCode.FAILED))
    assert [each for each in found if "can be read by others" in each]
    assert [each for each in found if "is not the key of" in each]


async def test_it_reads_a_brokers_configuration(yard: Yard, site: SecureSite) -> None:
    secure = str(site.fleet.broker_folder / "mosquitto.conf")
    assert troubles(await examine(yard, "--no-bus", "--broker-conf", secure)) == []
    open_door = yard.folder / "open.conf"
    open_door.write_text("listener 1883\n  \n\t# note\nallow_anonymous true\nmax_queued_messages 0\n")
    found = troubles(await examine(yard, "--no-bus", "--broker-conf", str(open_door), code=ExitCode.FAILED))
    assert len(found) == 4


QUEUES = (("100000", "ok"), ("1000", "warning"), ("0", "problem"), ("all", "problem"))


@pytest.mark.parametrize(("said", "level"), QUEUES)
async def test_it_judges_how_much_a_broker_keeps_for_a_reader(
    yard: Yard, site: SecureSite, said: str, level: str
) -> None:
    config = site.fleet.broker_folder / "mosquitto.conf"
    config.write_text(config.read_text().replace("max_queued_messages 100000", f"max_queued_messages {said}"))
    code = ExitCode.FAILED if level == "problem" else ExitCode.OK
    findings = await examine(yard, "--no-bus", "--broker-conf", str(config), code=code)
    (queue,) = [each for each in findings if "max_queued_messages" in each["found"]]
    assert (queue["level"], bool(queue["advice"])) == (level, level != "ok")


async def test_a_broker_that_is_not_there_is_named(yard: Yard) -> None:
    found = troubles(await examine(yard, "--broker", "mqtt://127.0.0.1:9", code=ExitCode.FAILED))
    assert found == ["broker: mqtt://127.0.0.1:9: Connection refused"]


async def test_a_development_broker_works_and_is_called_open(yard: Yard, broker: Mosquitto) -> None:
    findings = await examine(yard, "--broker", broker.url)
    assert troubles(findings) == []
    assert [each for each in findings if each["check"] == "ACL" and each["level"] == "warning"]
