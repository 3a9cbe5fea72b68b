"""A fleet as `fedops-mqtt fleet` enrols it: every process with nothing but its bundle, a run over TLS to its end."""

import json
import re
import ssl
import tomllib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiomqtt
import psutil
import pytest
from secure_site import BY_PASSWORD, MANAGER, PROBE, SERVER, STANDBY, TASK, A, B, SecureSite, make_fleet
from yard import MARK, Installed, Yard

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.demo.reaper import marked
from fedops_mqtt.enrolment import EnrolmentRequest, Role
from fedops_mqtt.protocol import mac_to_level, topics
from fedops_mqtt.runtime.systemd import ExitCode


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SecureSite]:
    made = make_fleet(tmp_path / "fleet")
    async with Mosquitto(config=made.broker_folder / "mosquitto.conf") as broker:
        yield SecureSite(made, broker)


async def start_device(yard: Yard, site: SecureSite, mac: str, **settings: object) -> Installed:
    return await yard.start(
        "client", "--config", str(site.bundle(mac)), state_dir=yard.folder / "devices", heartbeat_s=5, **settings
    )


async def test_a_run_over_tls_with_nothing_but_bundles(yard: Yard, site: SecureSite) -> None:
    tasks = yard.folder / "tasks.toml"
    tasks.write_text(
        f'[tasks.{TASK}]\nmodule = "fedops_mqtt.demo.server"\nnum_rounds = 1\nmin_clients = 2\n'
        f"config = {json.dumps(str(site.bundle(SERVER)))}\n"
    )
    manager = await yard.start(
        "manager", "--config", str(site.bundle(MANAGER)), "--tasks", str(tasks),
        http="127.0.0.1:0", state_dir=yard.folder / "manager", store=yard.folder / "models",
    )  # fmt: skip
    url = (await manager.until_printed(r"API at (\S+)")).group(1)
    for mac in (A, BY_PASSWORD):
        extra = {} if mac == A else {"app": "fedops_mqtt.demo:client_app"}
        device = await start_device(yard, site, mac, **extra)
        await device.until_printed("connected to the broker")
    run = await yard.run("start", TASK, "--manager", url, "--wait")
    assert run.process.returncode == 0, run.stdout + run.stderr + manager.stderr
    assert_nothing_secret_was_said(yard, site)


def assert_nothing_secret_was_said(yard: Yard, site: SecureSite) -> None:
    """Look for passwords and keys in every log and in the arguments of every process that is still there."""
    secrets = [key.read_text().splitlines()[1] for key in site.fleet.folder.rglob("*.key")]
    secrets.append(tomllib.loads(site.bundle(BY_PASSWORD).read_text())["broker_password"])
    logs = [
        path.read_text(errors="replace") for path in yard.folder.rglob("*") if path.suffix in (".out", ".err", ".log")
    ]
    arguments = [" ".join(process.cmdline()) for process in marked(yard.mark, MARK)]
    assert len(logs) > 3
    assert len(arguments) >= 3
    assert [secret for secret in secrets for text in (*logs, *arguments) if secret in text] == []


@pytest.mark.long
async def test_a_bundle_that_others_can_read_is_reported(yard: Yard, site: SecureSite) -> None:
    site.bundle(BY_PASSWORD).chmod(0o644)
    (site.bundle(A).parent / "client.key").chmod(0o640)
    app = "fedops_mqtt.demo:client_app"
    for mac, file in ((BY_PASSWORD, "bundle.toml"), (A, "client.key")):
        device = await start_device(yard, site, mac, app=app)
        await device.until_printed(rf"can be read by others.*{file}")
    for verb, who in (("manager", MANAGER), ("bridge", PROBE)):
        key = site.bundle(who).with_name("client.key")
        key.chmod(0o640)
        where = {"http": "127.0.0.1:0", "state_dir": yard.folder / verb}
        process = await yard.start(verb, "--config", str(site.bundle(who)), **where)
        await process.until_printed(r"can be read by others.*client.key")


@pytest.mark.long
async def test_keys_are_exchanged_while_everything_runs(yard: Yard, site: SecureSite) -> None:
    """The rotation of docs/security.md: renew, let the broker read, renew the broker, take the old ones back."""
    device = await start_device(yard, site, A, backoff_max_s=0.2)
    await device.until_printed("connected to the broker")
    old = site.bundle(A).with_name("client.crt").read_bytes()
    old_key = site.bundle(A).with_name("client.key").read_bytes()
    site.fleet.renew(A)
    site.fleet.renew_broker()
    await site.reload()

    site.fleet.revoke_old(A)
    await site.reload()

    (yard.folder / "old.crt").write_bytes(old)
    (yard.folder / "old.key").write_bytes(old_key)
    files = {"broker_cert_file": yard.folder / "old.crt", "broker_key_file": yard.folder / "old.key"}
    stolen = await yard.start(
        "watch", broker=site.url(A), broker_ca_file=site.fleet.folder / "ca.crt", **files, connect_timeout_s=5
    )
    assert await stolen.wait() != 0
    assert "revoked" in stolen.stderr

    await site.broker.restart()
    await device.until_printed(r"(?s)lost the connection.*connected to the broker")
    assert device.stderr.count("lost the connection") == 1, "new keys, and taking back the old ones, cut nobody off"
    assert device.process.returncode is None


async def test_the_authority_is_exchanged_while_everything_runs(yard: Yard, site: SecureSite) -> None:
    """docs/security.md: both authorities at the broker and at devices, then new certificates, then the old one out."""
    new = make_fleet(yard.folder / "new")
    both = {name: (site.fleet.folder / name, new.folder / name) for name in ("ca.crt", "broker/crl.pem")}
    joined = {name: b"".join(path.read_bytes() for path in paths) for name, paths in both.items()}
    device = await start_device(yard, site, A, backoff_max_s=0.2)
    await device.until_printed("connected to the broker")
    site.bundle(A).with_name("ca.crt").write_bytes(joined["ca.crt"])
    (site.fleet.broker_folder / "ca.crt").write_bytes(joined["ca.crt"])
    (site.fleet.broker_folder / "crl.pem").write_bytes(joined["broker/crl.pem"])
    await site.reload()

    for name in ("client.crt", "client.key"):
        site.bundle(A).with_name(name).write_bytes((new.folder / "bundles" / mac_to_level(A) / name).read_bytes())
    async with site.bare_client(A, tls_context=trusting(joined["ca.crt"], site.bundle(A))):
        pass  # by the new authority's certificate; it took the daemon's place for a moment
    await device.until_printed(r"(?s)lost the connection.*connected to the broker")

    for name in ("ca.crt", "crl.pem", "broker.crt", "broker.key"):
        (site.fleet.broker_folder / name).write_bytes((new.broker_folder / name).read_bytes())
    assert site.fleet.reload_broker()
    probe = new.folder / "bundles" / PROBE / "bundle.toml"
    async with site.bare_client(PROBE, tls_context=trusting(joined["ca.crt"], probe)):
        pass  # it has read them before it answers
    only_new = (new.folder / "ca.crt").read_bytes()
    async with site.bare_client(A, tls_context=trusting(only_new, site.bundle(A))):
        pass
    assert await site.refusal(B, tls_context=trusting(only_new, site.bundle(B))) is not None
    await device.until_printed(r"(?s)lost the connection.*lost the connection.*connected to the broker")
    assert device.process.returncode is None


def trusting(authorities: bytes, bundle: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authorities.decode())
    context.load_cert_chain(bundle.with_name("client.crt"), bundle.with_name("client.key"))
    return context


async def test_a_device_whose_bundle_is_revoked_logs_why_it_cannot_connect(yard: Yard, site: SecureSite) -> None:
    site.fleet.revoke(B)
    await site.reload()
    device = await start_device(yard, site, B)
    await device.until_printed("certificate revoked")
    assert psutil.pid_exists(device.process.pid), "it goes on trying: whoever enrols it again need not go there"
    site.fleet.enrol(EnrolmentRequest(role=Role.DEVICE, name=B, tasks=[TASK], app="fedops_mqtt.demo:client_app"))
    await site.reload()
    await device.until_printed("connected to the broker")


@pytest.mark.long
async def test_a_manager_in_the_network_wants_a_certificate_and_its_verbs_have_one(
    yard: Yard, site: SecureSite
) -> None:
    own = site.bundle(SERVER).parent
    door = {"http_cert_file": own / "client.crt", "http_key_file": own / "client.key"}
    common = {"http": "0.0.0.0:0", "state_dir": yard.folder / "manager"}
    open_to_all = await yard.run("manager", "--config", str(site.bundle(MANAGER)), **common, **door)
    assert open_to_all.process.returncode == ExitCode.CONFIG
    assert "FEDOPS_MQTT_MANAGER_TOKEN" in open_to_all.stdout + open_to_all.stderr

    ca_file = site.fleet.folder / "ca.crt"
    manager = await yard.start(
        "manager", "--config", str(site.bundle(MANAGER)), **common, **door, http_client_ca_file=ca_file
    )
    port = (await manager.until_printed(r"API at https://\S+:(\d+)")).group(1)
    asked = {"manager": f"https://127.0.0.1:{port}", "manager_ca_file": ca_file}
    operator = site.bundle(STANDBY).parent
    files = {"manager_cert_file": operator / "client.crt", "manager_key_file": operator / "client.key"}
    assert (await yard.run("runs", "--json", **asked, **files)).process.returncode == ExitCode.OK
    stranger = await yard.run("runs", "--json", **asked)
    assert stranger.process.returncode == ExitCode.UNAVAILABLE, stranger.stderr


@pytest.mark.long
async def test_home_assistant_discovery_is_published_as_soon_as_the_acl_allows_it(yard: Yard, site: SecureSite) -> None:
    site.fleet.enrol(EnrolmentRequest(role=Role.DASHBOARD, name="home", has_password=True))
    await site.reload()
    common = {"http": "127.0.0.1:0", "state_dir": yard.folder / "manager", "home_assistant": "homeassistant"}
    manager = await yard.start("manager", "--config", str(site.bundle(MANAGER)), **common)
    await start_device(yard, site, A)
    await manager.until_printed(r"refuses Home Assistant discovery.*topic write homeassistant/#")

    acl = site.fleet.broker_folder / "acl"
    acl.write_text(re.sub(r"^#(topic \w+ homeassistant/#|user home)$", r"\1", acl.read_text(), flags=re.MULTILINE))
    await site.reload()
    async with site.subscribed("home", "homeassistant/#", "fedops/v1/+/clients/+/status") as home:
        level = mac_to_level(A)
        found = f"homeassistant/binary_sensor/fedops_{TASK}_{level.replace('-', '')}_training/config"
        delivered = {message.topic: message.payload for message in await home.until(found)}
        assert json.loads(delivered[found])["state_topic"] == f"fedops/v1/{TASK}/clients/{level}/status"
        async with site.bare_client(B) as device:
            with suppress(aiomqtt.MqttError):
                await device.publish(found, b"evil", qos=1)
            await device.publish(str(topics.client_status(TASK, B)), b"fine", qos=1)
        after = await home.until(str(topics.client_status(TASK, B)))
        assert b"evil" not in [message.payload for message in after]
