"""A fleet's folder: its authority, its register, the broker's files and a bundle for everybody enrolled.

The folder holds the keys of the whole fleet (`ca.key`, and `app-signing.key` that signs apps): it belongs on the
machine of whoever enrols, not on the broker or the manager. Every change is whole: the register is written last, and
the broker's files follow from it.
"""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedops_mqtt.apps import AppSigner, make_signing_key
from fedops_mqtt.enrolment import broker_files
from fedops_mqtt.enrolment.authority import Credentials, issue, make_authority, make_revocation_list
from fedops_mqtt.enrolment.bundle import BundleContent, write_bundle
from fedops_mqtt.enrolment.errors import (
    EnrolmentError,
    FleetExistsError,
    HostRefusedError,
    IdentityExistsError,
    NameRefusedError,
    NoFleetError,
)
from fedops_mqtt.enrolment.permissions import FIRST_MANAGER, render_dynamic_security, render_nats_users
from fedops_mqtt.enrolment.register import (
    EnrolledIdentity,
    IssuedCertificate,
    Ports,
    Register,
    hash_password,
    load_register,
    make_password,
    save_register,
)
from fedops_mqtt.enrolment.roles import Role, check_name
from fedops_mqtt.protocol import check_task_id
from fedops_mqtt.runtime.files import locked, make_private_folder, write_atomically
from fedops_mqtt.runtime.machine import MAX_HOST_NAME

REGISTER_FILE = "fleet.json"
CA_CERTIFICATE_FILE = "ca.crt"
CA_KEY_FILE = "ca.key"
APP_KEY_FILE = "app-signing.key"
"""Signs the apps that devices run; as `ca.key`, it never leaves the machine of whoever enrols."""
BROKER_FOLDER = "broker"
BUNDLE_FOLDER = "bundles"
DYNAMIC_SECURITY_FILE = "dynamic-security.json"
DYNAMIC_SECURITY_CONFIG = "mosquitto.dynsec.conf"
NATS_FILE = "nats-users.conf"
NATS_CONFIG = "nats.conf"

_JUDGES_OF_APPS = frozenset({Role.DEVICE, Role.MANAGER})
"""A device runs what the fleet's key signed, a manager publishes nothing else."""

DEVICE_DAYS = 825
"""Two years and a quarter: `fedops-mqtt fleet list` and `doctor` warn a month before, see docs/security.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """A request to enrol an identity. `hosts`: names of the machine where an FL server or a bridge listens."""

    role: Role
    name: str
    tasks: Sequence[str] = ()
    hosts: Sequence[str] = ()
    app: str | None = None
    has_password: bool = False
    days: int = DEVICE_DAYS


class FleetFolder:
    """A fleet that is there; make one with `init_fleet`.

    Raises:
        NoFleetError: there is none in this folder.
        RegisterError: its register cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._load()

    @property
    def register(self) -> Register:
        """Who is enrolled, as read or written last."""
        return self._register

    @property
    def broker_folder(self) -> Path:
        """The files that the broker reads."""
        return self.folder / BROKER_FOLDER

    def enrol(self, request: EnrolmentRequest) -> Path:
        """Enrol an identity and return the settings file of its bundle; raises as `enrol_all`."""
        return self.enrol_all([request])[0]

    def enrol_all(self, requests: Sequence[EnrolmentRequest]) -> list[Path]:
        """Enrol all identities or none, and return the settings files of their bundles.

        Raises:
            NameRefusedError: a name does not fit its role.
            HostRefusedError: a host is invalid.
            IdentityExistsError: one is taken; a revoked one may be enrolled again.
            EnrolmentError: a role needs something that is missing.
        """
        names = [_check_request(request) for request in requests]
        if len(set(names)) < len(names):
            raise NameRefusedError(max(names, key=names.count), "it is named twice")
        with self._changing() as now:
            for name in names:
                present = self._register.identities.get(name)
                if present is not None and not present.is_revoked:
                    raise IdentityExistsError(name, present.role)
            fresh = [self._begin(name, request, now) for name, request in zip(names, requests, strict=True)]
            made = [
                self._issue_bundle(identity, request, now) for identity, request in zip(fresh, requests, strict=True)
            ]
            self._save(self._register.having(*(identity for identity, _ in made)), now)
            return [bundle for _, bundle in made]

    def renew(self, name: str, *, app: str | None = None, days: int = DEVICE_DAYS) -> Path:
        """Make new keys (or a new password) for an identity and return its settings file.

        The old certificate stays valid until it expires, or until `revoke_old`, so no connection breaks. A password
        has no such time of grace.

        Raises:
            UnknownIdentityError: no identity has this name.
        """
        with self._changing() as now:
            identity = self._register[_any_name(name)]
            identity = identity.model_copy(update={"app": app or identity.app})
            request = EnrolmentRequest(
                role=identity.role,
                name=identity.name,
                tasks=identity.tasks,
                hosts=identity.hosts,
                app=identity.app,
                has_password=identity.password is not None,
                days=days,
            )
            identity, bundle = self._issue_bundle(identity, request, now)
            self._save(self._register.having(identity), now)
            return bundle

    def revoke(self, name: str) -> EnrolledIdentity:
        """Take everything back: certificates onto the revocation list, the password out, and the ACL denies all.

        Raises:
            UnknownIdentityError: no identity has this name.
        """
        with self._changing() as now:
            identity = self._register[_any_name(name)]
            revoked = identity.revoked(now, serials=[each.serial for each in identity.certificates])
            revoked = revoked.model_copy(update={"revoked_at": identity.revoked_at or now, "password": None})
            self._save(self._register.having(revoked), now)
            return revoked

    def revoke_old(self, name: str) -> int:
        """Revoke every certificate of an identity but the newest; return how many.

        Raises:
            UnknownIdentityError: no identity has this name.
        """
        with self._changing() as now:
            identity = self._register[_any_name(name)]
            old = [each.serial for each in identity.certificates[:-1] if each.revoked_at is None]
            self._save(self._register.having(identity.revoked(now, serials=old)), now)
            return len(old)

    def renew_broker(
        self, *, days: int = DEVICE_DAYS, hosts: Sequence[str] = (), is_every_host_a_broker: bool = False
    ) -> None:
        """Make a new certificate and key for the broker; it uses them when it reads its files again.

        `hosts` takes the place of the hosts that it was made for; bundles that are made from now on name them.

        Raises:
            HostRefusedError: one of them is no host.
        """
        _check_hosts(hosts)
        with self._changing() as now:
            self._issue_broker(now, days, hosts or self.register.hosts)
            if hosts:
                where = {"hosts": tuple(hosts), "is_every_host_a_broker": is_every_host_a_broker}
                save_register(self.folder / REGISTER_FILE, self.register.model_copy(update=where))
                self._load()

    def list_identities(self) -> list[EnrolledIdentity]:
        """Return all identities that are or were enrolled, by role and name."""
        return sorted(self._register.identities.values(), key=lambda each: (each.role, each.name))

    def app_signer(self) -> AppSigner:
        """Return what signs this fleet's apps; a fleet from before there was a key gets one now.

        Raises:
            EnrolmentError: the key cannot be read, or is invalid.
        """
        with locked(self.folder):
            return self._app_signer()

    def write_dynamic_security(self) -> Path:
        """Write the fleet for the dynamic-security plugin, which then takes the place of ACL and password file."""
        with self._changing():
            shipped = (self.broker_folder / broker_files.CONFIG_FILE).read_text(encoding="utf-8")
            config = broker_files.render_dynamic_security_config(shipped, self._register)
            write_atomically(self.broker_folder / DYNAMIC_SECURITY_CONFIG, config.encode())
            self._write_plugins_file()
        return self._plugins_file

    def write_nats(self, shipped: str) -> Path:
        """Write the fleet's users for NATS, and `shipped`, a server's configuration, where there is none yet."""
        with self._changing():
            config = self.broker_folder / NATS_CONFIG
            if not config.exists():
                write_atomically(config, shipped.encode())
            self._write_nats_users()
        return self.broker_folder / NATS_FILE

    @property
    def has_nats(self) -> bool:
        """True when the fleet was written for NATS."""
        return (self.broker_folder / NATS_FILE).exists()

    @property
    def has_plugin(self) -> bool:
        """True when the fleet was written for the dynamic-security plugin, which a reload does not reach."""
        return self._plugins_file.exists()

    def reload_broker(self) -> bool:
        """Make a broker on this machine read its files again; False when it does not run here."""
        return broker_files.reload_broker(self.broker_folder)

    def _load(self) -> None:
        try:
            self._register = load_register(self.folder / REGISTER_FILE)
            self._authority = Credentials(
                certificate=(self.folder / CA_CERTIFICATE_FILE).read_bytes(),
                key=(self.folder / CA_KEY_FILE).read_bytes(),
            )
        except FileNotFoundError as error:
            raise NoFleetError(str(self.folder)) from error
        except OSError as error:
            raise EnrolmentError(f"{error.filename}: {error.strerror}") from error

    @contextmanager
    def _changing(self) -> Iterator[datetime]:
        """Lock the folder, read the changes of other processes, and yield the time."""
        with locked(self.folder):
            self._load()
            yield datetime.now(UTC).replace(microsecond=0)

    def _app_signer(self) -> AppSigner:
        path = self.folder / APP_KEY_FILE
        try:
            if not path.exists():
                write_atomically(path, make_signing_key())
            return AppSigner(path.read_bytes())
        except (OSError, ValueError) as error:
            raise EnrolmentError(f"{path}: {error}") from error

    def _begin(self, name: str, request: EnrolmentRequest, now: datetime) -> EnrolledIdentity:
        present = self._register.identities.get(name)
        return EnrolledIdentity(
            name=name,
            role=request.role,
            tasks=tuple(request.tasks),
            hosts=tuple(request.hosts),
            app=request.app,
            certificates=present.certificates if present else (),
            enrolled_at=now,
        )

    def _issue_bundle(
        self, identity: EnrolledIdentity, request: EnrolmentRequest, now: datetime
    ) -> tuple[EnrolledIdentity, Path]:
        """Give an identity fresh credentials and write its bundle."""
        credentials = password = None
        if request.has_password:
            password = make_password()
            identity = identity.model_copy(update={"password": hash_password(password), "revoked_at": None})
        else:
            credentials = issue(self._authority, identity.name, hosts=identity.hosts, now=now, days=request.days)
            issued = IssuedCertificate(serial=f"{credentials.serial:x}", issued_at=now, not_after=credentials.not_after)
            update = {"certificates": (*identity.certificates, issued), "revoked_at": None}
            identity = identity.model_copy(update=update)
        content = BundleContent(
            identity=identity,
            broker_hosts=self._register.hosts[: None if self._register.is_every_host_a_broker else 1],
            ports=self._register.ports,
            ca_certificates=self._authority.certificate,
            credentials=credentials,
            password=password,
            app=request.app,
            app_signers=(self._app_signer().public_key,) if identity.role in _JUDGES_OF_APPS else (),
        )
        return identity, write_bundle(self.folder / BUNDLE_FOLDER / identity.name, content)

    def _save(self, register: Register, now: datetime) -> None:
        register = register.model_copy(update={"crl_number": register.crl_number + 1})
        crl = self.broker_folder / broker_files.CRL_FILE
        previous = crl.read_bytes() if crl.exists() else None
        revocations = make_revocation_list(
            self._authority, register.revoked_serials(), now=now, number=register.crl_number, previous=previous
        )
        save_register(self.folder / REGISTER_FILE, register)
        self._register = register
        write_atomically(crl, revocations)
        broker_files.write_access(self.broker_folder, register.identities.values())
        if self.has_plugin:
            self._write_plugins_file()
        if self.has_nats:
            self._write_nats_users()

    @property
    def _plugins_file(self) -> Path:
        return self.broker_folder / DYNAMIC_SECURITY_FILE

    def _write_plugins_file(self) -> None:
        write_atomically(self._plugins_file, render_dynamic_security(self._register.identities.values()).encode())

    def _write_nats_users(self) -> None:
        write_atomically(self.broker_folder / NATS_FILE, render_nats_users(self._register.identities.values()).encode())

    def _issue_broker(self, now: datetime, days: int, hosts: Sequence[str]) -> None:
        credentials = issue(self._authority, "broker", hosts=hosts, now=now, days=days)
        write_atomically(self.broker_folder / broker_files.KEY_FILE, credentials.key)
        write_atomically(self.broker_folder / broker_files.CERTIFICATE_FILE, credentials.certificate)


def init_fleet(
    folder: Path,
    *,
    hosts: Sequence[str],
    is_every_host_a_broker: bool = False,
    shipped: Path,
    broker_dir: str | None = None,
    ports: Ports | None = None,
    days: int = DEVICE_DAYS,
) -> FleetFolder:
    """Make a fleet: authority, broker's files, and the first manager.

    Args:
        folder: where; it must not hold a fleet.
        hosts: names and addresses under which clients reach the broker; bundles use the first.
        is_every_host_a_broker: bundles use all of them, the first one preferred.
        shipped: the folder with the shipped `mosquitto.conf` and `acl`.
        broker_dir: where the broker's files will stand on its machine; default: where they are written now.
        ports: where it listens; default: as shipped.
        days: how long the broker's and the manager's certificates hold.

    Raises:
        FleetExistsError: there is a fleet already.
        EnrolmentError: no host is named.
        HostRefusedError: a host is invalid.
    """
    if not hosts:
        raise EnrolmentError("the name under which devices reach the broker is missing: --host broker.example.org")
    _check_hosts(hosts)
    make_private_folder(folder)
    with locked(folder):
        if (folder / REGISTER_FILE).exists() or (folder / CA_KEY_FILE).exists():
            raise FleetExistsError(str(folder))
        where = broker_dir or str((folder / BROKER_FOLDER).resolve())
        register = Register(hosts=tuple(hosts), broker_dir=where, ports=ports or Ports())
        register = register.model_copy(update={"is_every_host_a_broker": is_every_host_a_broker})
        _write_new(folder, register, shipped)
    fleet = FleetFolder(folder)
    fleet.app_signer()
    fleet.renew_broker(days=days)
    fleet.enrol(EnrolmentRequest(role=Role.MANAGER, name=FIRST_MANAGER, days=days))
    return fleet


def _write_new(folder: Path, register: Register, shipped: Path) -> None:
    authority = make_authority(
        f"fedops-mqtt fleet of {register.hosts[0]}"[:64], datetime.now(UTC).replace(microsecond=0)
    )
    broker = folder / BROKER_FOLDER
    make_private_folder(broker)
    make_private_folder(folder / BUNDLE_FOLDER)
    config = (shipped / broker_files.CONFIG_FILE).read_text(encoding="utf-8")
    write_atomically(broker / broker_files.CONFIG_FILE, broker_files.render_broker_config(config, register).encode())
    write_atomically(broker / broker_files.ACL_FILE, (shipped / broker_files.ACL_FILE).read_bytes())
    write_atomically(broker / broker_files.CA_FILE, authority.certificate)
    write_atomically(folder / CA_KEY_FILE, authority.key)
    write_atomically(folder / CA_CERTIFICATE_FILE, authority.certificate)
    save_register(folder / REGISTER_FILE, register)


def _check_request(request: EnrolmentRequest) -> str:
    name = check_name(request.role, request.name)
    for task in request.tasks:
        check_task_id(task)
    _check_hosts(request.hosts)
    if request.role is Role.SERVER and len(request.tasks) != 1:
        raise EnrolmentError(f"an FL server has one task: give {name} one --task")
    if request.role is Role.DEVICE and request.hosts:
        raise NameRefusedError(name, "a device does not listen: --host is for servers")
    if request.has_password and request.hosts:
        raise EnrolmentError(f"{name}: a password cannot serve TLS under a host name; leave out --password or --host")
    return name


_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"


def _check_hosts(hosts: Sequence[str]) -> None:
    for host in hosts:
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            if len(host) > MAX_HOST_NAME or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", host):
                raise HostRefusedError(host) from None


def _any_name(name: str) -> str:
    """Return an identity's user name, also from a MAC in any spelling."""
    try:
        return check_name(Role.DEVICE, name)
    except NameRefusedError:
        return name
