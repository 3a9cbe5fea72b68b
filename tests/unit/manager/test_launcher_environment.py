"""What an FL server's process is told, and what of the manager's own it is not."""

from pathlib import Path

import pytest

from fedops_mqtt.bus import BusOptions
from fedops_mqtt.manager.launcher import child_environment
from fedops_mqtt.manager.leader import _common_settings
from fedops_mqtt.runtime.settings import BusSettings, ManagerSettings

MANAGERS = {
    "HOME": "/home/someone",
    "FEDOPS_MQTT_CONFIG": "manager.toml",
    "FEDOPS_MQTT_MANAGER_TOKEN": "secret",
    "FEDOPS_MQTT_DATABASE_URL": "postgresql://user:secret@db/x",
    "FEDOPS_MQTT_BROKER_KEY_FILE": "manager.key",
}
SAID = {"broker": "mqtts://broker:8883", "broker_user": "manager", "task_id": "digits", "advertise": None}


def test_a_server_does_not_get_the_managers_file_token_and_database() -> None:
    made = child_environment(MANAGERS, SAID, {})
    assert made["FEDOPS_MQTT_BROKER"] == "mqtts://broker:8883"
    assert not {"FEDOPS_MQTT_CONFIG", "FEDOPS_MQTT_MANAGER_TOKEN", "FEDOPS_MQTT_DATABASE_URL"} & made.keys()
    assert "FEDOPS_MQTT_ADVERTISE" not in made


def test_a_server_with_settings_of_its_own_gets_none_of_the_managers_credentials(tmp_path: Path) -> None:
    made = child_environment(MANAGERS, SAID, {}, settings_file=tmp_path / "bundle.toml")
    assert made["FEDOPS_MQTT_CONFIG"] == str(tmp_path / "bundle.toml")
    assert [name for name in made if name.startswith("FEDOPS_MQTT_BROKER")] == []
    assert made["FEDOPS_MQTT_TASK_ID"] == "digits"


def test_what_the_task_adds_outweighs_everything() -> None:
    assert child_environment(MANAGERS, SAID, {"FEDOPS_MQTT_TASK_ID": "mine"})["FEDOPS_MQTT_TASK_ID"] == "mine"


def test_a_server_takes_its_turns_among_several_brokers_as_its_manager_does(monkeypatch: pytest.MonkeyPatch) -> None:
    several = "mqtt://a,mqtt://b"
    settings = ManagerSettings(broker=several, broker_first_try_s=1.5, broker_return_s=7, keepalive_s=9)
    for name, value in child_environment({}, _common_settings(settings), {}).items():
        monkeypatch.setenv(name, value)
    servers = BusSettings()
    assert servers.broker == several
    assert BusOptions.from_settings(servers) == BusOptions.from_settings(settings)
