"""Which device this is, from the machine itself."""

import uuid

from fedops_mqtt.runtime.machine import host_name

_MULTICAST_BIT = 1 << 40
"""Set by `uuid.getnode` in a number that it made up because it found no network card (RFC 4122, 4.5)."""


class NoMacAddressError(RuntimeError):
    """This machine shows no network card to be known by."""

    def __init__(self) -> None:
        super().__init__("no network card with a MAC address was found; give this client one: --mac 02:00:00:00:00:01")


def get_mac_address() -> str:
    """Return this machine's MAC as `aa:bb:cc:dd:ee:ff`.

    Raises:
        NoMacAddressError: there is none; a made-up one would be another client after every restart.
    """
    node = uuid.getnode()
    if node & _MULTICAST_BIT:
        raise NoMacAddressError
    digits = f"{node:012x}"
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def get_hostname() -> str:
    """Return the name of this machine."""
    return host_name()
