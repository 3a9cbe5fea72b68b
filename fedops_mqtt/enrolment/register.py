"""The fleet's register of identities, a JSON file beside its keys. It holds no key and no password, only hashes."""

import base64
import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fedops_mqtt.enrolment.errors import RegisterError, UnknownIdentityError
from fedops_mqtt.enrolment.roles import Role
from fedops_mqtt.protocol.wire import first_problem
from fedops_mqtt.runtime.files import write_atomically

_SALT_BYTES = 12
_HASH_BYTES = 64
_ITERATIONS = 101
"""mosquitto's default. Few, since the password is 256 random bits: guessing is hopeless, and a fleet that comes back
after an outage is 5,000 checks at once on the broker's one thread."""

_PASSWORD_BYTES = 32


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PasswordHash(_Record):
    """What a broker keeps of a password; salt and hash are base64."""

    salt: str
    hash: str
    iterations: int

    def as_line(self, user: str) -> str:
        """Return the line of mosquitto's password file."""
        return f"{user}:$7${self.iterations}${self.salt}${self.hash}"


def make_password() -> str:
    """Return a password that nobody guesses."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def hash_password(password: str) -> PasswordHash:
    """Return what the broker keeps of a password."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS, _HASH_BYTES)
    return PasswordHash(
        salt=base64.b64encode(salt).decode(), hash=base64.b64encode(digest).decode(), iterations=_ITERATIONS
    )


class IssuedCertificate(_Record):
    """A certificate of an identity; the serial number is hexadecimal."""

    serial: str
    issued_at: datetime
    not_after: datetime
    revoked_at: datetime | None = None


class EnrolledIdentity(_Record):
    """An identity that is, or was, enrolled. `name` is the user name at the broker; no tasks means every task."""

    name: str
    role: Role
    tasks: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    app: str | None = None
    """A device's ClientApp, so that a renewed bundle names it too."""
    certificates: tuple[IssuedCertificate, ...] = ()
    password: PasswordHash | None = None
    enrolled_at: datetime
    revoked_at: datetime | None = None

    @property
    def is_revoked(self) -> bool:
        """True when it was taken back."""
        return self.revoked_at is not None

    @property
    def not_after(self) -> datetime | None:
        """When its last good certificate expires; None for a password."""
        return max((each.not_after for each in self.certificates if each.revoked_at is None), default=None)

    def revoked(self, now: datetime, *, serials: Iterable[str]) -> "EnrolledIdentity":
        """Return it with these certificates taken back; those taken back before keep their time."""
        taken = set(serials)
        certificates = tuple(
            each.model_copy(update={"revoked_at": now}) if each.serial in taken and each.revoked_at is None else each
            for each in self.certificates
        )
        return self.model_copy(update={"certificates": certificates})


class Ports(_Record):
    """The broker's ports, by how clients authenticate."""

    certificate: int = 8883
    password: int = 8884
    websockets: int = 9001


class Register(_Record):
    """The whole fleet. `broker_dir` is where the broker's files stand on the broker's machine."""

    version: Literal[1] = 1
    hosts: tuple[str, ...]
    is_every_host_a_broker: bool = False
    """Bundles name a broker at each host, not only at the first."""
    ports: Ports = Ports()
    broker_dir: str
    crl_number: int = 1
    identities: dict[str, EnrolledIdentity] = {}

    def __getitem__(self, name: str) -> EnrolledIdentity:
        """Return an identity.

        Raises:
            UnknownIdentityError: there is none of this name.
        """
        if name not in self.identities:
            raise UnknownIdentityError(name)
        return self.identities[name]

    def having(self, *changed: EnrolledIdentity) -> "Register":
        """Return the register with these identities added or replaced."""
        return self.model_copy(update={"identities": self.identities | {each.name: each for each in changed}})

    def revoked_serials(self) -> dict[int, datetime]:
        """Return when each certificate was taken back, by serial number."""
        return {
            int(each.serial, 16): each.revoked_at
            for identity in self.identities.values()
            for each in identity.certificates
            if each.revoked_at is not None
        }


def load_register(path: Path) -> Register:
    """Read a register.

    Raises:
        RegisterError: it is not one.
        FileNotFoundError: there is none.
    """
    try:
        return Register.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RegisterError(str(path), first_problem(error, "the file")) from error


def save_register(path: Path, register: Register) -> None:
    """Write a register in one step."""
    write_atomically(path, register.model_dump_json(indent=2).encode() + b"\n")
