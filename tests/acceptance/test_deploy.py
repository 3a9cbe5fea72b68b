"""What is shipped to install: units that systemd accepts and finds tight, a compose file whose every command runs."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ports import free_port
from secure_site import HOST
from yard import COMMAND, Installed, Yard

from fedops_mqtt.bus import Mosquitto

pytestmark = pytest.mark.long

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = ("fedops-mqtt-client.service", "fedops-mqtt-manager.service")
MAX_EXPOSURE = 3.0
PATIENCE_S = 300.0

Compose = dict[str, Any]


def analyse(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    assert tool is not None, "`make test-acceptance` installs systemd-analyze (Debian: apt-get install systemd)"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / name).read_text()
    unit = tmp_path / name
    unit.write_text(text.replace("/opt/fedops-mqtt/bin/fedops-mqtt", sys.executable))
    verified = analyse("verify", str(unit))
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("name", UNITS)
def test_the_unit_is_tight(name: str) -> None:
    assert exposure_of(DEPLOY / "systemd" / name) < MAX_EXPOSURE


def exposure_of(unit: Path) -> float:
    judged = analyse("security", "--offline=true", str(unit))
    exposure = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", judged.stdout)
    assert exposure is not None, judged.stderr
    return float(exposure.group(1))


@pytest.fixture
def dropped_in(tmp_path: Path) -> Path:
    """Debian's unit with the drop-in beside it."""
    shutil.copytree(DEPLOY / "systemd" / "mosquitto.service.d", tmp_path / "mosquitto.service.d")
    unit = tmp_path / "mosquitto.service"
    unit.write_text(DEBIANS_UNIT)
    return unit


DEBIANS_UNIT = """\
[Unit]
After=network.target
Wants=network.target
[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/sbin/mosquitto -c /etc/mosquitto/mosquitto.conf
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
ExecStartPre=/bin/mkdir -m 740 -p /var/log/mosquitto
ExecStartPre=/bin/chown mosquitto /var/log/mosquitto
"""
"""What of it matters here; of mosquitto 2.0.11 in Debian 12."""


def test_systemd_accepts_the_brokers_drop_in(dropped_in: Path) -> None:
    verified = analyse("verify", str(dropped_in))
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_broker_is_tight_with_its_drop_in(dropped_in: Path) -> None:
    assert exposure_of(dropped_in) < MAX_EXPOSURE
    shutil.rmtree(dropped_in.with_name("mosquitto.service.d"))
    assert exposure_of(dropped_in) > MAX_EXPOSURE, "without it it is not"


class ServiceManager:
    """The datagram socket that systemd would listen on."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE_S)

    async def next_state(self) -> str:
        return (await asyncio.to_thread(self._socket.recv, 4096)).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    yield manager
    manager.close()


@pytest.mark.parametrize("verb", ["client", "manager"])
async def test_systemd_is_notified_of_ready_alive_and_stopping(
    yard: Yard, broker: Mosquitto, systemd: ServiceManager, verb: str
) -> None:
    settings: dict[str, object] = {"broker": broker.url, "state_dir": yard.folder / "state"}
    if verb == "client":
        settings |= {"task_id": "t", "app": "fedops_mqtt.demo:client_app", "mac": "02:00:00:00:00:01"}
    else:
        settings |= {"http": "127.0.0.1:0"}
    process = await yard.start(verb, **settings)
    assert await systemd.next_state() == "READY=1"
    assert [await systemd.next_state() for _ in range(3)] == ["WATCHDOG=1"] * 3
    assert await process.end() == 0
    while (word := await systemd.next_state()) == "WATCHDOG=1":
        pass
    assert word == "STOPPING=1"


@pytest.fixture
def compose() -> Compose:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_the_compose_file_is_one(compose: Compose) -> None:
    schema = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*schema, str(DEPLOY / "compose.yaml")], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert set(compose["services"]) == {"broker", "manager", "client-1", "client-2", "client-3"}


def test_no_container_has_more_than_its_own_bundle_and_rights(compose: Compose) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert "privileged" not in service, name
        assert all("ca.key" not in volume and not volume.startswith("./fleet:") for volume in service["volumes"]), name
    assert [name for name, service in compose["services"].items() if "ports" in service] == ["broker"]


def test_containers_run_as_the_user_that_made_the_fleet(compose: Compose, fleet: Path) -> None:
    said = dict(line.split("=") for line in (fleet.parent / ".env").read_text().splitlines())
    assert said == {"UID": str(os.getuid()), "GID": str(os.getgid())}
    assert {service["user"] for service in compose["services"].values()} == {"${UID:-1000}:${GID:-1000}"}


def test_what_the_image_is_made_of_is_sent_to_its_builder_and_no_key(compose: Compose) -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    sent = re.findall(r"^!(\S+)$", (DEPLOY.parent / ".dockerignore").read_text(), re.MULTILINE)
    assert set(" ".join(copied).split()) == set(sent)
    assert compose["services"]["manager"]["build"]["context"] == ".."


class Host:
    """This machine in Docker's place: each container's volumes are where it would find them, its command is run."""

    def __init__(self, yard: Yard, compose: Compose, fleet: Path, ports: dict[str, int]) -> None:
        self._yard = yard
        self._services = compose["services"]
        self._fleet = fleet
        self._ports = ports

    def path(self, service: str, inside: str) -> str:
        """Return where a path inside a container is on this machine."""
        for volume in self._services[service]["volumes"]:
            outside, there = volume.split(":")[:2]
            if inside == there or inside.startswith(f"{there}/"):
                on_host = str(self._fleet) + outside.removeprefix("./fleet") if "fleet" in outside else ""
                return (on_host or str(self._yard.folder / Path(outside).name)) + inside.removeprefix(there)
        return inside

    async def run(self, service: str, **settings: object) -> Installed:
        command = [self.path(service, word) for word in self._services[service]["command"]]
        config = self.path(service, "/bundle/bundle.toml")
        state = self._yard.folder / "state" / service
        where = {"config": config, "state_dir": state, "broker": f"mqtts://localhost:{self._ports['8883']}"}
        return await self._yard.start(*command, **where, **settings)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """What `make-fleet.sh` makes."""
    folder = tmp_path / "fleet"
    environment = os.environ | {"COMMAND": str(COMMAND), "FEDOPS_MQTT_FLEET_DIR": str(folder)}
    subprocess.run(["sh", str(DEPLOY / "make-fleet.sh")], check=True, env=environment, capture_output=True, timeout=300)
    return folder


def move_in(host: Host, compose: Compose, fleet: Path, folder: Path, ports: dict[str, int]) -> Path:
    """Put this machine's folders, ports and names where Docker's are; return the broker's configuration."""
    config = Path(host.path("broker", compose["services"]["broker"]["command"][-1]))
    text = config.read_text().replace("/mosquitto/fedops", str(fleet / "broker"))
    for port in ("8883", "8884", "9001"):
        text = text.replace(f"listener {port}", f"listener {ports[port]}")
    config.write_text(text)
    tasks = (DEPLOY / "tasks.toml").read_text().replace("0.0.0.0:9100", f"{HOST}:{ports['9100']}")
    tasks = tasks.replace("manager:9100", f"localhost:{ports['9100']}").replace("num_rounds = 5", "num_rounds = 1")
    (folder / "tasks.toml").write_text(tasks)
    bundle = shutil.copytree(fleet / "bundles" / "server-digits", folder / "server") / "bundle.toml"
    bundle.write_text(bundle.read_text().replace("mqtts://broker:8883", f"mqtts://localhost:{ports['8883']}"))
    return config


async def test_every_command_of_the_compose_file_runs_and_a_run_completes(
    yard: Yard, compose: Compose, fleet: Path
) -> None:
    ports = {port: free_port() for port in ("8883", "8884", "9001", "9100")}
    host = Host(yard, compose, fleet, ports)
    async with Mosquitto(config=move_in(host, compose, fleet, yard.folder, ports)):
        manager = await host.run("manager", http="127.0.0.1:0", store=yard.folder / "models")
        url = (await manager.until_printed(r"API at (\S+)")).group(1)
        for name in ("client-1", "client-2", "client-3"):
            client = await host.run(name)
            await client.until_printed("connected to the broker")
        run = await yard.run("start", "digits", "--manager", url, "--wait")
        assert run.process.returncode == 0, run.stdout + run.stderr + manager.stderr
