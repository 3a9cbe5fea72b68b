"""docs/from-one-laptop-to-a-fleet.md as a person follows it: its commands of the machine where one enrols, in order.

What crosses the network there is put into folders of this machine; what only a root user of another machine does
(packages, units) is not run.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from ports import free_port
from yard import COMMAND, Yard

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.runtime.systemd import ExitCode

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-one-laptop-to-a-fleet.md"
OURS = ("fedops-mqtt fleet", "tar ", "ssh ")
ELSEWHERE = ("/etc/mosquitto/fedops", "/etc/fedops-mqtt")


def commands_of_the_page() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(OURS) and "systemctl" not in line]


def here(command: str, folder: Path) -> str:
    """Return a command with its other machines as folders of this one."""
    command = re.sub(r"ssh \S+ sudo ", "", command).replace("broker.example.org", "localhost")
    for there in ELSEWHERE:
        command = command.replace(f" {there}", f" {folder}{there}")
    return command


def follow(folder: Path) -> None:
    (folder / "etc/mosquitto/fedops").mkdir(parents=True)
    (folder / "macs.txt").write_text("aa:bb:cc:dd:ee:07\naa:bb:cc:dd:ee:08\n")
    environment = os.environ | {"PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}
    commands = commands_of_the_page()
    assert len(commands) >= 10
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", here(command, folder)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.long
async def test_the_commands_of_the_page_make_a_fleet_whose_doctor_finds_nothing_wrong(yard: Yard) -> None:
    follow(yard.folder)
    broker, manager, client = (
        yard.folder / each for each in ("etc/mosquitto/fedops", "etc/fedops-mqtt/manager", "etc/fedops-mqtt/client")
    )
    assert {"acl", "broker.crt", "broker.key", "ca.crt", "crl.pem", "mosquitto.conf", "passwd"} == {
        path.name for path in broker.iterdir()
    }
    for key in (
        broker / "broker.key",
        manager / "client.key",
        manager / "server-digits/client.key",
        client / "client.key",
    ):
        assert key.stat().st_mode & 0o777 == 0o600, key
    assert "user aa-bb-cc-dd-ee-07\ntopic deny #" in (broker / "acl").read_text(), "the one that was stolen"

    ports = {shipped: free_port() for shipped in (8883, 8884, 9001)}
    config = (broker / "mosquitto.conf").read_text()
    for shipped, port in ports.items():
        config = config.replace(f"listener {shipped}", f"listener {port}")
    (broker / "mosquitto.conf").write_text(config)
    async with Mosquitto(config=broker / "mosquitto.conf"):
        for bundle in (manager, manager / "server-digits", client):
            where = {"broker": f"mqtts://localhost:{ports[8883]}", "state_dir": yard.folder / "state"}
            doctor = await yard.run("doctor", "--config", str(bundle / "bundle.toml"), **where)
            assert doctor.process.returncode == ExitCode.OK, doctor.stdout
