"""FedOps' views of a client, and who this device is; needs no framework.

`FLClientStatus` is a view of our status under FedOps' names: made when asked for, kept nowhere.
"""

import socket
import uuid

from pydantic import BaseModel, ConfigDict

from fedops_mqtt.core.client import Client
from fedops_mqtt.protocol import ClientCondition

_MULTICAST_BIT = 1 << 40
"""Set by `uuid.getnode` in a number that it made up because it found no network card (RFC 4122, 4.5)."""


class NoMacAddressError(RuntimeError):
    """This machine shows no network card to be known by."""

    def __init__(self) -> None:
        super().__init__("no network card with a MAC address was found; give this client one: --mac 02:00:00:00:00:01")


class FLClientStatus(BaseModel):
    """A client as FedOps' `GET /online` tells it (FedOps client_utils.FLClientStatus)."""

    model_config = ConfigDict(frozen=True)

    task_id: str = ""
    client_num: int = 0
    client_mac: str = ""
    client_name: str = ""
    client_online: bool = True
    client_start: bool = False
    client_fail: bool = False
    server_IP: str | None = None
    gl_model: int = 0

    def with_first_names(self) -> dict[str, str | int | bool | None]:
        """Return the same facts under today's names and under those of FedOps' first client managers."""
        return {
            "FL_task_id": self.task_id,
            "FL_client_num": self.client_num,
            "FL_client_mac": self.client_mac,
            "FL_client_online": self.client_online,
            "FL_client_start": self.client_start,
            "FL_client_fail": self.client_fail,
            "FL_server_IP": self.server_IP,
            "FL_next_gl_model": self.gl_model,
            **self.model_dump(),
        }


class ManagerData(BaseModel):
    """What a FedOps client manager answers to `/info` (FedOps client_api.get_info)."""

    model_config = ConfigDict(frozen=True)

    GL_Model_V: int = 0


def view_of(client: Client) -> FLClientStatus:
    """Return the FedOps view of a client."""
    return FLClientStatus(
        task_id=client.identity.task_id,
        client_mac=client.identity.client_mac,
        client_name=client.identity.client_name,
        client_online=client.condition is not ClientCondition.CLIENT_OUT,
        client_start=client.run is not None,
        client_fail=client.condition is ClientCondition.TRAIN_FAILED,
        server_IP=client.server_ip,
        gl_model=client.facts.gl_model,
    )


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
    return socket.gethostname()
