"""Which device this is: from the settings, and where they are silent, from the machine itself."""

import uuid
from pathlib import Path

from fedops_mqtt.bus import EpochFile, client_id_of, new_instance, parse_broker_urls
from fedops_mqtt.core.client import Identity
from fedops_mqtt.device.journal import identity_dir
from fedops_mqtt.protocol import MAX_TEXT_CHARS, clip, mac_to_level
from fedops_mqtt.runtime.machine import host_name
from fedops_mqtt.runtime.settings import DELIVERED, IS_DELIVERED, ClientSettings


class ClientConfigError(ValueError):
    """The settings do not name this client, or what it trains."""

    def __init__(self, setting: str, problem: str) -> None:
        self.setting = setting
        self.problem = problem
        super().__init__(f"{setting}: {problem}")


class ShimAddressError(OSError):
    """The shim cannot listen at the address that is set."""

    def __init__(self, address: str, problem: str) -> None:
        self.address = address
        self.problem = problem
        super().__init__(f"cannot listen on {address}: {problem}; choose another address with --http, or none")


_MULTICAST_BIT = 1 << 40
"""Set by `uuid.getnode` in a number that it made up because it found no network card (RFC 4122, 4.5)."""


class NoMacAddressError(RuntimeError):
    """This machine shows no network card to be known by."""

    def __init__(self) -> None:
        super().__init__("no network card with a MAC address was found; give this client one: --mac 02:00:00:00:00:01")


def get_mac_address() -> str:
    """Return this machine's MAC as `aa:bb:cc:dd:ee:ff`.

    Raises:
        NoMacAddressError: there is no MAC; a made-up one would be another client after every restart.
    """
    node = uuid.getnode()
    if node & _MULTICAST_BIT:
        raise NoMacAddressError
    digits = f"{node:012x}"
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def get_hostname() -> str:
    """Return the name of this machine."""
    return host_name()


def identity_of(settings: ClientSettings) -> tuple[Identity, Path, EpochFile]:
    """Return who this client is from now on, its folder, and what its connections before counted there."""
    if settings.task_id is None:
        raise ClientConfigError("task_id", "a client needs to know its task; give it --task-id")
    if settings.app not in IS_DELIVERED and not all((settings.app or "").partition(":")[::2]):
        problem = f"{settings.app!r} is neither MODULE:ATTRIBUTE, such as my_project.client:app, nor {DELIVERED}"
        raise ClientConfigError("app", problem)
    mac = settings.mac or get_mac_address()
    epochs = EpochFile((folder := identity_dir(settings.state_dir, settings.task_id, mac)) / "epoch")
    identity = Identity(
        task_id=settings.task_id,
        client_mac=mac,
        client_name=clip(settings.client_name or get_hostname(), MAX_TEXT_CHARS),
        instance=new_instance(last_epoch=epochs.load()),
    )
    return identity, folder, epochs


def client_id_for(settings: ClientSettings, identity: Identity) -> str | None:
    """Return the MQTT client id: the user name where there is one (the broker may insist), else task and MAC."""
    user = settings.broker_user or parse_broker_urls(settings.broker)[0].user
    return client_id_of(user or f"{identity.task_id}-{mac_to_level(identity.client_mac)}")
