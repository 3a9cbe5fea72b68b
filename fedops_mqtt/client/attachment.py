"""What FedOps programs reach a daemon by: the HTTP shim, and the client and server managers that stand before it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fedops_mqtt.client.client_managers import ClientManagers
from fedops_mqtt.client.client_utils import view_of
from fedops_mqtt.device.attachment import Notice
from fedops_mqtt.device.daemon import Daemon
from fedops_mqtt.runtime.settings import ClientSettings


class FedOpsAttachment:
    """The FedOps side of one daemon, as its settings ask for it."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._managers = ClientManagers.from_settings(settings, settings.task_id or "")

    @asynccontextmanager
    async def serving(self, daemon: Daemon) -> AsyncIterator[str | None]:
        """Serve the shim while the block runs; yields its `host:port`, or None where the settings ask for none.

        Raises:
            ShimAddressError: the address is taken, none of this machine's, or beyond it and open to anybody.
        """
        settings = self._settings
        if settings.http is None:
            yield None
            return
        # Here, not above: FastAPI is a fifth of an idle daemon, and most devices never listen.
        from fedops_mqtt.client.http_shim import access_rules, allowed_servers, make_shim, serving

        shim = make_shim(
            view=lambda: view_of(daemon.client),
            start=daemon.start,
            managers=self._managers,
            may_start_at=allowed_servers(settings),
            starts_by_get=settings.http_get_start,
            takes_any_mac=settings.http_any_mac,
        )
        async with serving(shim, settings.http, access_rules(settings)) as address:
            yield address

    async def notify(self, notice: Notice) -> None:
        """Report an end to FedOps' client manager, where there is one."""
        await self._managers.notify(notice)
