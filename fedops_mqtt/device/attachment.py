"""What a daemon needs of the programs that reach it by other ways than the bus."""

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from fedops_mqtt.device.daemon import Daemon

Notice = Literal["trainFin", "trainFail", "flclient_out"]
"""FedOps' words for how a training ended, and for a client that leaves (FedOps client_api.ClientMangerAPI)."""


class Attachment(Protocol):
    """What other programs reach a daemon by; FedOps' side is `client.attachment`."""

    def serving(self, daemon: "Daemon") -> AbstractAsyncContextManager[str | None]:
        """Serve while the block runs; yields the `host:port` that it listens at, if it does."""

    async def notify(self, notice: Notice) -> None:
        """Report that a training ended or that the client leaves."""
