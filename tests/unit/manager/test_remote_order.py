"""What a server on another machine is told: its settings, and the content of the files that they name here."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fedops_mqtt.manager.remote_order import make_order, store_of, verb
from fedops_mqtt.manager.tasks import TaskConfig
from fedops_mqtt.runtime.machine import fill_in

SAID = {"broker": "mqtts://b:8883", "broker_user": "manager", "broker_password": "m", "store": "/models", "join": None}


def order_of(task: TaskConfig, **more: object) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(make_order("r1", 2, task, {**SAID, **more}, b"\x01\xff"))
    return read


def test_an_order_has_the_secret_as_a_file_and_nothing_of_this_hosts_folders() -> None:
    order = order_of(TaskConfig(module="m", args=("--x",)), state_dir=Path("/state"))
    assert (order["module"], order["args"], order["launch"]) == ("m", ["--x"], 2)
    assert base64.b64decode(order["files"]["run_secret_file"]) == b"01ff"
    told = order["environment"]
    assert (told["FEDOPS_MQTT_LISTEN"], told["FEDOPS_MQTT_ADVERTISE"]) == ("0.0.0.0:0", "{address}")
    assert not {"FEDOPS_MQTT_STATE_DIR", "FEDOPS_MQTT_STORE", "FEDOPS_MQTT_JOIN"} & told.keys()


def test_a_bundle_is_handed_over_with_its_files_in_the_place_of_the_managers_credentials(tmp_path: Path) -> None:
    (tmp_path / "tls.key").write_text("its key")
    bundle = tmp_path / "bundle.toml"
    bundle.write_text(
        'broker = ["mqtts://x", "mqtts://y"]\nbroker_user = "server"\nbroker_key_file = "tls.key"\n'
        'broker_cert_file = "tls.key"\nadvertise = "fl.example.org"\nstore = "s3://models"'
    )
    task = TaskConfig(module="m", config=bundle, env={"EXTRA": "1"})
    order = order_of(task)
    told = order["environment"]
    assert (told["FEDOPS_MQTT_BROKER"], told["FEDOPS_MQTT_BROKER_USER"]) == ("mqtts://x,mqtts://y", "server")
    assert (told["FEDOPS_MQTT_ADVERTISE"], told["EXTRA"]) == ("fl.example.org", "1")
    assert "FEDOPS_MQTT_BROKER_PASSWORD" not in told
    assert base64.b64decode(order["files"]["broker_key_file"]) == b"its key"
    assert store_of(task, "/models") == told["FEDOPS_MQTT_STORE"] == "s3://models"


def test_a_file_that_is_named_on_the_other_machine_is_not_handed_over(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("ca")
    order = order_of(
        TaskConfig(module="m", env={"FEDOPS_MQTT_BROKER_CA_FILE": "/etc/ca"}), broker_ca_file=tmp_path / "ca"
    )
    assert "broker_ca_file" not in order["files"]
    assert order["environment"]["FEDOPS_MQTT_BROKER_CA_FILE"] == "/etc/ca"


def test_a_store_of_this_host_is_none_of_another() -> None:
    assert store_of(TaskConfig(module="m"), "/models") is None
    assert store_of(TaskConfig(module="m"), "s3://models") == "s3://models"
    assert store_of(TaskConfig(module="m", env={"FEDOPS_MQTT_STORE": "/there"}), "/models") == "/there"


def test_the_state_folder_of_the_other_machine_is_a_part_of_the_command() -> None:
    task = TaskConfig(module="m", env={"FEDOPS_MQTT_STATE_DIR": "/there"})
    assert verb(task, "alive", "r", "1")[-4:] == ["--state-dir=/there", "alive", "r", "1"]


@pytest.mark.parametrize(
    ("advertise", "announced"),
    [("{host}:9000", "gpu1:9000"), ("{address}", "127.0.0.1"), ("{address}:1", "127.0.0.1:1"), ("fl:2", "fl:2")],
)
def test_an_address_to_announce_is_filled_in_where_the_server_runs(advertise: str, announced: str) -> None:
    assert fill_in(advertise, "gpu1", ("127.0.0.1", 1883)) == announced
