"""Whom the bridge is to the broker: the one it speaks for, where there is a bundle of that name, else itself."""

from pathlib import Path

from fedops_mqtt.bridge.client_proxy import own_identity
from fedops_mqtt.bus.mosquitto import find_config
from fedops_mqtt.enrolment import EnrolmentRequest, Role, init_fleet

LEVEL = "02-00-00-00-00-01"


def test_a_client_with_a_bundle_is_spoken_for_under_its_own_name(tmp_path: Path) -> None:
    fleet = init_fleet(tmp_path / "fleet", hosts=["b"], shipped=find_config("mosquitto.conf").parent)
    fleet.enrol(EnrolmentRequest(role=Role.DEVICE, name=LEVEL, tasks=["digits"]))
    bundles = fleet.folder / "bundles"
    own = own_identity(bundles, LEVEL)
    assert (own["broker"], own["broker_user"]) == ("mqtts://b:8883", LEVEL)
    assert own["broker_key_file"] == bundles / LEVEL / "client.key"
    assert set(own) <= {"broker", "broker_user", "broker_ca_file", "broker_cert_file", "broker_key_file"}


def test_without_a_bundle_the_bridge_is_itself(tmp_path: Path) -> None:
    assert own_identity(tmp_path, LEVEL) == {}
    assert own_identity(None, LEVEL) == {}
