"""A fleet's folder: who gets what, what the broker's files say of it, and who may read it."""

import json
import os
import stat
import tomllib
from pathlib import Path

import pytest
from cryptography import x509

from fedops_mqtt.bus.mosquitto import find_config
from fedops_mqtt.enrolment import (
    EnrolmentError,
    EnrolmentRequest,
    FleetExistsError,
    FleetFolder,
    IdentityExistsError,
    NameRefusedError,
    NoFleetError,
    Permission,
    Ports,
    RegisterError,
    Role,
    UnknownIdentityError,
    init_fleet,
    rules_of,
)
from fedops_mqtt.enrolment.errors import HostRefusedError
from fedops_mqtt.protocol import IdentityError
from fedops_mqtt.runtime.settings import ClientSettings

SHIPPED = find_config("mosquitto.conf").parent
MAC = "02:00:00:00:00:01"
LEVEL = "02-00-00-00-00-01"


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFolder:
    return init_fleet(tmp_path / "fleet", hosts=["broker.example.org", "10.0.0.5"], shipped=SHIPPED)


def device(name: str = MAC, **wish: object) -> EnrolmentRequest:
    return EnrolmentRequest(role=Role.DEVICE, name=name, **wish)  # type: ignore[arg-type]


def broker_file(fleet: FleetFolder, name: str) -> str:
    return (fleet.broker_folder / name).read_text()


def revoked_serials(fleet: FleetFolder) -> set[int]:
    crl = x509.load_pem_x509_crl((fleet.broker_folder / "crl.pem").read_bytes())
    return {entry.serial_number for entry in crl}


@pytest.mark.parametrize("host", ["br\u00fccke.local", "", "http://broker", "a..b", "x" * 64, "two words"])
def test_a_host_that_is_none_is_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(HostRefusedError, match="neither a host name nor an address"):
        init_fleet(tmp_path / "fleet", hosts=["broker.example.org", host], shipped=SHIPPED)
    assert not (tmp_path / "fleet").exists()
    fleet = init_fleet(tmp_path / "fleet", hosts=["xn--brcke-lva.local", "::1", "[::1]", "10.0.0.5"], shipped=SHIPPED)
    with pytest.raises(HostRefusedError):
        fleet.renew_broker(hosts=[host])
    with pytest.raises(HostRefusedError):
        fleet.enrol(EnrolmentRequest(role=Role.SERVER, name="server-x", tasks=["x"], hosts=[host]))


def test_everything_in_the_folder_is_for_its_owner_only(fleet: FleetFolder) -> None:
    fleet.enrol(device())
    for path in fleet.folder.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_devices_and_managers_take_the_signers_of_apps_from_their_bundles_only(fleet: FleetFolder) -> None:
    bundle = tomllib.loads(fleet.enrol(device()).read_text())
    manager = tomllib.loads((fleet.folder / "bundles" / "manager" / "bundle.toml").read_text())
    dashboard = tomllib.loads(fleet.enrol(EnrolmentRequest(role=Role.DASHBOARD, name="lab-screen")).read_text())
    assert bundle["app_signers"] == manager["app_signers"] == fleet.app_signer().public_key
    assert "app_signers" not in dashboard
    assert [
        path.name for path in fleet.folder.rglob("*.key") if "PRIVATE" in path.read_text() and "app" in path.name
    ] == ["app-signing.key"]


@pytest.mark.parametrize("name", [MAC, "manager"])
def test_a_fleet_without_a_signing_key_gets_one_and_renewing_brings_it(fleet: FleetFolder, name: str) -> None:
    fleet.enrol(device())
    (fleet.folder / "app-signing.key").unlink()
    renewed = tomllib.loads(fleet.renew(name).read_text())
    assert renewed["app_signers"] == FleetFolder(fleet.folder).app_signer().public_key
    assert stat.S_IMODE((fleet.folder / "app-signing.key").stat().st_mode) == 0o600


def test_an_invalid_signing_key_is_reported(fleet: FleetFolder) -> None:
    (fleet.folder / "app-signing.key").write_bytes(b"\xff")
    with pytest.raises(EnrolmentError, match=r"app-signing\.key"):
        fleet.enrol(device())


def test_the_broker_configuration_names_files_that_are_there(fleet: FleetFolder) -> None:
    named = [
        line.split(" ", 1)[1]
        for line in broker_file(fleet, "mosquitto.conf").splitlines()
        if line.startswith(("password_file", "acl_file", "cafile", "certfile", "keyfile", "crlfile"))
    ]
    assert len(named) == 12
    assert all(Path(each).is_file() for each in named)


def test_a_broker_elsewhere_finds_its_files_where_the_shipped_configuration_has_them(tmp_path: Path) -> None:
    made = init_fleet(tmp_path / "f", hosts=["b"], shipped=SHIPPED, broker_dir="/etc/mosquitto/fedops")
    assert broker_file(made, "mosquitto.conf") == (SHIPPED / "mosquitto.conf").read_text()


def test_other_ports_are_in_the_configuration_and_in_bundles(tmp_path: Path) -> None:
    made = init_fleet(
        tmp_path / "f", hosts=["b"], shipped=SHIPPED, ports=Ports(certificate=1, password=2, websockets=3)
    )
    listeners = [line for line in broker_file(made, "mosquitto.conf").splitlines() if line.startswith("listener")]
    assert listeners == ["listener 1", "listener 2", "listener 3"]
    assert 'broker = "mqtts://b:1"' in made.enrol(device()).read_text()
    assert 'broker = "mqtts://b:2"' in made.enrol(device("02:00:00:00:00:02", has_password=True)).read_text()


def test_a_device_bundle_is_all_that_its_daemon_needs(fleet: FleetFolder) -> None:
    bundle = fleet.enrol(device(tasks=["digits"], app="my_task:app"))
    said = tomllib.loads(bundle.read_text())
    settings = ClientSettings(**said)
    assert (settings.mac, settings.task_id, settings.app) == (MAC, "digits", "my_task:app")
    assert settings.broker == "mqtts://broker.example.org:8883"
    for name in ("broker_ca_file", "broker_cert_file", "broker_key_file", "line_ca_file"):
        assert (bundle.parent / said[name]).is_file()


def test_a_password_goes_into_the_bundle_and_only_its_hash_to_the_broker(fleet: FleetFolder) -> None:
    bundle = fleet.enrol(EnrolmentRequest(role=Role.DASHBOARD, name="screen", has_password=True))
    password = tomllib.loads(bundle.read_text())["broker_password"]
    assert broker_file(fleet, "passwd").startswith("screen:$7$101$")
    everything_else = [path for path in fleet.folder.rglob("*") if path.is_file() and path != bundle]
    assert all(password.encode() not in path.read_bytes() for path in everything_else)


def test_revoking_puts_all_certificates_on_the_list_and_denies_everything(fleet: FleetFolder) -> None:
    fleet.enrol(device())
    fleet.renew(MAC)
    fleet.revoke("02:00:00:00:00:01".upper())
    identity = fleet.register[LEVEL]
    assert revoked_serials(fleet) == {int(each.serial, 16) for each in identity.certificates}
    assert len(identity.certificates) == 2
    assert f"user {LEVEL}\ntopic deny #" in broker_file(fleet, "acl")


def test_revoking_a_password_takes_its_entry_out(fleet: FleetFolder) -> None:
    fleet.enrol(EnrolmentRequest(role=Role.DASHBOARD, name="screen", has_password=True))
    fleet.revoke("screen")
    assert broker_file(fleet, "passwd") == ""


def test_a_revoked_device_can_be_enrolled_again_and_its_old_certificate_stays_bad(fleet: FleetFolder) -> None:
    fleet.enrol(device())
    fleet.revoke(MAC)
    bad = revoked_serials(fleet)
    fleet.enrol(device(tasks=["digits"]))
    assert revoked_serials(fleet) == bad
    assert f"user {LEVEL}\ntopic readwrite fedops/v1/digits/clients/{LEVEL}/status" in broker_file(fleet, "acl")


def test_a_renewed_bundle_has_the_contents_of_the_first_one(fleet: FleetFolder) -> None:
    first = fleet.enrol(
        EnrolmentRequest(role=Role.DEVICE, name="02:00:00:00:00:77", tasks=["digits"], app="my_task:app")
    ).read_text()
    assert 'app = "my_task:app"' in first
    assert fleet.renew("02:00:00:00:00:77").read_text() == first
    assert 'app = "other:app"' in fleet.renew("02:00:00:00:00:77", app="other:app").read_text()
    assert 'app = "other:app"' in fleet.renew("02:00:00:00:00:77").read_text()


def test_renewing_leaves_the_old_certificate_good_until_it_is_taken_back(fleet: FleetFolder) -> None:
    fleet.enrol(device())
    fleet.renew(MAC)
    assert revoked_serials(fleet) == set()
    assert fleet.revoke_old(MAC) == 1
    assert revoked_serials(fleet) == {int(fleet.register[LEVEL].certificates[0].serial, 16)}


def test_rules_that_a_person_wrote_stay_in_the_acl(fleet: FleetFolder) -> None:
    acl = fleet.broker_folder / "acl"
    acl.write_text("user backup\ntopic read #\n" + acl.read_text())
    fleet.enrol(device())
    assert acl.read_text().startswith("user backup\ntopic read #\n")
    assert acl.read_text().count(f"user {LEVEL}") == 1


def test_a_device_has_the_topics_of_its_tasks_and_no_pattern_of_before_gives_it_others(fleet: FleetFolder) -> None:
    acl = fleet.broker_folder / "acl"
    before = "pattern write fedops/v1/+/clients/%u/status\npattern read fedops/v1/+/clients/%u/start\n"
    acl.write_text(before + "pattern read site/%u/notes\n" + acl.read_text())
    fleet.enrol(device(tasks=["digits", "faces"]))
    assert acl.read_text().startswith("pattern read site/%u/notes\n")
    own = acl.read_text().partition(f"user {LEVEL}\n")[2]
    assert {line.split("/")[2] for line in own.splitlines() if line.startswith("topic")} == {"digits", "faces"}
    assert not any(line.startswith("pattern") for line in acl.read_text().splitlines()[1:])


def test_the_register_is_the_same_for_every_process_that_opens_it(fleet: FleetFolder) -> None:
    fleet.enrol(device())
    assert FleetFolder(fleet.folder).list_identities() == fleet.list_identities()


def test_two_enrolments_at_once_lose_no_identity(fleet: FleetFolder) -> None:
    other = FleetFolder(fleet.folder)
    fleet.enrol(device("02:00:00:00:00:01"))
    other.enrol(device("02:00:00:00:00:02"))
    assert set(FleetFolder(fleet.folder).register.identities) == {"manager", LEVEL, "02-00-00-00-00-02"}


def test_a_broken_register_is_reported_with_its_place(fleet: FleetFolder) -> None:
    path = fleet.folder / "fleet.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hosts": 3}))
    with pytest.raises(RegisterError, match="hosts"):
        FleetFolder(fleet.folder)


def test_what_is_there_is_never_overwritten(fleet: FleetFolder) -> None:
    key = (fleet.folder / "ca.key").read_bytes()
    with pytest.raises(FleetExistsError):
        init_fleet(fleet.folder, hosts=["b"], shipped=SHIPPED)
    assert (fleet.folder / "ca.key").read_bytes() == key
    with pytest.raises(IdentityExistsError, match="renew"):
        fleet.enrol(EnrolmentRequest(role=Role.MANAGER, name="manager"))


def test_errors_name_what_to_do(fleet: FleetFolder, tmp_path: Path) -> None:
    with pytest.raises(NoFleetError, match="fleet init"):
        FleetFolder(tmp_path / "nowhere")
    with pytest.raises(UnknownIdentityError, match="fleet list"):
        fleet.revoke("02:00:00:00:00:09")
    with pytest.raises(EnrolmentError, match="--task"):
        fleet.enrol(EnrolmentRequest(role=Role.SERVER, name="server-digits"))


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "a:b", "+", "#", "aa-bb-cc-dd-ee-ff", "broker", "x" * 64])
def test_names_that_would_give_other_rights_are_refused(fleet: FleetFolder, name: str) -> None:
    with pytest.raises(NameRefusedError):
        fleet.enrol(EnrolmentRequest(role=Role.DASHBOARD, name=name))


@pytest.mark.parametrize("task", ["+", "#", "a/b", "..", ""])
def test_a_task_cannot_widen_a_rule(fleet: FleetFolder, task: str) -> None:
    with pytest.raises(IdentityError):
        fleet.enrol(device(tasks=[task]))


@pytest.mark.parametrize("role", [Role.DEVICE, Role.SERVER, Role.DASHBOARD])
def test_only_the_manager_and_the_bridge_publish_or_read_starts(role: Role) -> None:
    others = [rule for rule in rules_of(role, LEVEL, ["digits"]) if "/start" in rule.topic_filter]
    assert [rule for rule in others if rule.can_write or LEVEL not in rule.topic_filter] == []


def test_a_dashboard_writes_nothing() -> None:
    assert {rule.access for rule in rules_of(Role.DASHBOARD, "screen", [])} == {Permission.READ}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes into another user's folder")
def test_what_root_writes_into_the_brokers_folder_belongs_to_the_broker(fleet: FleetFolder) -> None:
    os.chown(fleet.broker_folder, 65534, 65534)
    fleet.enrol(device())
    assert (fleet.broker_folder / "acl").stat().st_uid == 65534


def test_of_many_all_are_enrolled_or_none(fleet: FleetFolder) -> None:
    fleet.enrol(device("02:00:00:00:00:03"))
    before = (fleet.folder / "fleet.json").read_bytes()
    with pytest.raises(IdentityExistsError, match="02-00-00-00-00-03"):
        fleet.enrol_all([device("02:00:00:00:00:02"), device("02:00:00:00:00:03")])
    assert (fleet.folder / "fleet.json").read_bytes() == before
    bundles = fleet.enrol_all([device(f"02:00:00:00:01:{number:02x}") for number in range(100)])
    assert len(set(bundles)) == 100
    assert broker_file(fleet, "acl").count("topic read fedops/v1/+/server/status") == 101


def test_bundles_name_every_host_of_the_broker_where_that_is_wanted(tmp_path: Path) -> None:
    hosts = ["a.example.org", "fd00::1"]
    made = init_fleet(tmp_path / "f", hosts=hosts, is_every_host_a_broker=True, shipped=SHIPPED)
    bundle = made.enrol(EnrolmentRequest(role=Role.DEVICE, name="02:00:00:00:00:01"))
    assert tomllib.loads(bundle.read_text())["broker"] == "mqtts://a.example.org:8883,mqtts://[fd00::1]:8883"
    made.renew_broker(hosts=["c.example.org", "d.example.org"])
    assert "a.example.org" in bundle.read_text()
    assert tomllib.loads(made.renew("02:00:00:00:00:01").read_text())["broker"] == "mqtts://c.example.org:8883"
    certificate = x509.load_pem_x509_certificate((made.broker_folder / "broker.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["c.example.org", "d.example.org"]
    assert FleetFolder(made.folder).register.hosts == ("c.example.org", "d.example.org")
