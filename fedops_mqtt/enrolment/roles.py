"""What each role may publish and read, as topic filters; ACL file and dynamic-security roles are made from this.

What is not listed is denied.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from fedops_mqtt.enrolment.errors import NameRefusedError
from fedops_mqtt.protocol import Channel, check_task_id, level_to_mac, normalise_mac
from fedops_mqtt.protocol.identity import IdentityError


class Role(StrEnum):
    """What an identity is for."""

    DEVICE = "device"
    MANAGER = "manager"
    SERVER = "server"
    DASHBOARD = "dashboard"
    BRIDGE = "bridge"
    """Publishes for many devices: the HTTP bridge for old FedOps clients, or a site's broker."""


class Permission(StrEnum):
    """What a rule allows, as mosquitto spells it."""

    READ = "read"
    WRITE = "write"
    READWRITE = "readwrite"


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is allowed."""

    access: Permission
    topic_filter: str

    @property
    def can_read(self) -> bool:
        """True where messages are delivered."""
        return self.access is not Permission.WRITE

    @property
    def can_write(self) -> bool:
        """True where messages, last wills too, are taken."""
        return self.access is not Permission.READ


BROKER_STATISTICS = "$SYS/broker/#"
"""mosquitto's statistics; the doctor reads dropped messages there."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_RESERVED = frozenset({"broker", "ca"})


def check_name(role: Role, name: str) -> str:
    """Return the user name that an identity has at the broker: a device's is its MAC with hyphens.

    Raises:
        NameRefusedError: it cannot be one, or would be taken for another role's.
    """
    if role is Role.DEVICE:
        try:
            return normalise_mac(name).replace(":", "-")
        except IdentityError as error:
            raise NameRefusedError(name, "a device is enrolled by its MAC, such as aa:bb:cc:dd:ee:ff") from error
    if not _NAME.fullmatch(name):
        raise NameRefusedError(name, "a name is 1 to 63 of a-z 0-9 . _ -, not beginning with a sign")
    is_mac = False
    with suppress(IdentityError):
        is_mac = bool(level_to_mac(name))
    if name in _RESERVED or is_mac:
        raise NameRefusedError(name, "this name is a device's or the broker's own: choose another")
    return name


def rules_of(role: Role, name: str, tasks: Sequence[str]) -> list[Rule]:
    """Return all that an identity may do. No tasks means every task."""
    wanted = [check_task_id(task) for task in tasks] or ["+"]
    match role:
        case Role.DEVICE:
            return [rule for task in wanted for rule in _device(task, name)]
        case Role.BRIDGE:
            return [rule for task in wanted for rule in _device(task, "+")] + [_read(Channel.MANAGER_STATUS.value)]
        case Role.SERVER:
            return [rule for task in wanted for rule in _server(task)]
        case Role.DASHBOARD:
            return [rule for task in wanted for rule in _dashboard(task)] + [_read(Channel.MANAGER_STATUS.value)]
        case Role.MANAGER:
            return _manager()


def _device(task: str, level: str) -> Iterable[Rule]:
    yield Rule(Permission.READWRITE, _topic(Channel.CLIENT_STATUS, task, level))
    yield Rule(Permission.WRITE, _topic(Channel.CLIENT_METRICS, task, level))
    yield _read(_topic(Channel.CLIENT_START, task, level))
    yield _read(_topic(Channel.CLIENT_STOP, task, level))
    yield _read(_topic(Channel.SERVER_STATUS, task))


def _server(task: str) -> Iterable[Rule]:
    yield Rule(Permission.READWRITE, f"fedops/v1/{task}/server/#")
    yield _read(_topic(Channel.CLIENT_STATUS, task))


def _dashboard(task: str) -> Iterable[Rule]:
    yield _read(_topic(Channel.CLIENT_STATUS, task))
    yield _read(_topic(Channel.CLIENT_METRICS, task))
    yield _read(f"fedops/v1/{task}/server/#")
    yield _read(_topic(Channel.RUN_STATUS, task))


def _manager() -> list[Rule]:
    written = (Channel.CLIENT_STATUS, Channel.CLIENT_START, Channel.CLIENT_STOP, Channel.RUN_STATUS)
    return [
        *(Rule(Permission.WRITE, _topic(channel, "+")) for channel in written),
        Rule(Permission.WRITE, Channel.MANAGER_STATUS.value),
        _read("fedops/v1/#"),
        _read(BROKER_STATISTICS),
    ]


def _read(topic_filter: str) -> Rule:
    return Rule(Permission.READ, topic_filter)


def _topic(channel: Channel, task: str, level: str = "+") -> str:
    return channel.value.format(task_id=task, mac=level, run_id="+")
