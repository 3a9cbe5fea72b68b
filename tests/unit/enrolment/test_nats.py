"""The users and permissions for NATS, made from the same roles as mosquitto's ACL."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedops_mqtt.bus.mosquitto import find_config
from fedops_mqtt.enrolment import EnrolmentRequest, Role, init_fleet
from fedops_mqtt.enrolment.permissions import render_nats_users, subjects_of
from fedops_mqtt.enrolment.register import EnrolledIdentity

A, B = "02-00-00-00-00-0a", "02-00-00-00-00-0b"


def users_of(text: str) -> dict[str, Any]:
    """NATS' configuration is JSON but for comments and the first name."""
    body = text.partition("\n")[2].removeprefix("authorization: ")
    return {each["user"]: each["permissions"] for each in json.loads(body)["users"]}


@pytest.mark.parametrize(
    ("topic_filter", "subjects"),
    [
        ("fedops/v1/+/clients/+/status", ["fedops.v1.*.clients.*.status"]),
        ("fedops/v1/#", ["fedops.v1", "fedops.v1.>"]),
        ("fedops/v1/my.task/runs/+", ["fedops.v1.my//task.runs.*"]),
    ],
)
def test_an_mqtt_filter_as_nats_has_it(topic_filter: str, subjects: list[str]) -> None:
    assert subjects_of(topic_filter) == subjects


def test_a_device_may_do_what_the_acl_lets_it_do() -> None:
    device = EnrolledIdentity(name=A, role=Role.DEVICE, tasks=("digits",), enrolled_at=datetime.now(UTC))
    (permissions,) = users_of(render_nats_users([device])).values()
    mine = f"fedops.v1.digits.clients.{A}"
    assert permissions["publish"] == {"allow": [f"{mine}.status", f"{mine}.metrics"]}
    assert set(permissions["subscribe"]["allow"]) == {
        f"{mine}.status", f"{mine}.start", f"{mine}.stop", "fedops.v1.digits.server.status", "$MQTT.sub.>"
    }  # fmt: skip


def test_a_reader_publishes_nothing() -> None:
    screen = EnrolledIdentity(name="screen", role=Role.DASHBOARD, enrolled_at=datetime.now(UTC))
    assert users_of(render_nats_users([screen]))["CN=screen"]["publish"] == {"deny": [">"]}


def test_the_file_follows_every_change_of_the_fleet(tmp_path: Path) -> None:
    fleet = init_fleet(tmp_path / "fleet", hosts=["127.0.0.1"], shipped=find_config("mosquitto.conf").parent)
    file = fleet.write_nats("the shipped one")
    assert (fleet.broker_folder / "nats.conf").read_text() == "the shipped one"
    fleet.enrol(EnrolmentRequest(role=Role.DEVICE, name=A, tasks=["digits"]))
    fleet.enrol(EnrolmentRequest(role=Role.DEVICE, name=B, tasks=["digits"], has_password=True))
    assert set(users_of(file.read_text())) == {"CN=manager", f"CN={A}"}
    fleet.revoke(A)
    assert set(users_of(file.read_text())) == {"CN=manager"}
