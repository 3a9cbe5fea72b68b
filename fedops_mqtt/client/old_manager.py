"""The other half of the shim: what a FedOps client says to and asks of the FedOps managers that still stand before it.

Without it an unchanged client manager would wait for the end of the first training for ever. Nothing here may hold the
daemon up: what cannot be said within seconds is logged and left.
"""

import asyncio
import json
import logging
import urllib.request
from typing import Literal, Self

from fedops_mqtt.bus import without_password
from fedops_mqtt.settings import ClientSettings

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
"""For a manager on the same device or site; FedOps itself waits for ten seconds."""
_MAX_ANSWER_BYTES = 64 * 1024

Word = Literal["trainFin", "trainFail", "flclient_out"]


class NoPortError(ValueError):
    """A start names an FL server without its port, and nobody knows it."""

    def __init__(self, server_ip: str, problem: str) -> None:
        self.server_ip = server_ip
        super().__init__(f"server_ip {server_ip!r} has no port: {problem}")


class OldManagers:
    """FedOps' client manager and server manager by their URLs; None: there is none.

    `aggregation_host` takes the place of the host that a client manager has built in (FedOps client_api.get_port).
    """

    def __init__(
        self,
        *,
        client_manager_url: str | None,
        server_manager_url: str | None,
        task_id: str,
        aggregation_host: str | None = None,
    ) -> None:
        self._client_manager_url = client_manager_url
        self._server_manager_url = server_manager_url
        self._aggregation_host = aggregation_host
        self._task_id = task_id

    @classmethod
    def from_settings(cls, settings: ClientSettings, task_id: str) -> Self:
        """Return what the settings say; without a shim no client manager stands before this client."""
        return cls(
            client_manager_url=settings.client_manager_url if settings.http else None,
            server_manager_url=settings.server_manager_url,
            aggregation_host=settings.aggregation_host,
            task_id=task_id,
        )

    async def tell(self, word: Word) -> None:
        """Say `/trainFin`, `/trainFail` or `/flclient_out` (FedOps client_api.ClientMangerAPI)."""
        if self._client_manager_url is None:
            return
        url = f"{self._client_manager_url.rstrip('/')}/{word}"
        try:
            await asyncio.to_thread(_get, url)
        except (OSError, ValueError) as error:
            logger.warning(
                "FedOps client manager was not told", extra={"url": without_password(url), "problem": str(error)}
            )

    async def find_server(self, server_ip: str) -> str:
        """Return `host:port` of an FL server; FedOps' client managers name the host only (`FLSe/getPort`).

        Raises:
            NoPortError: there is no port, and no server manager that knows it.
        """
        if server_ip.rpartition(":")[2].isdigit() and ":" in server_ip:
            return server_ip
        if self._server_manager_url is None:
            raise NoPortError(server_ip, "set FEDOPS_SERVER_MANAGER_URL, whose getPort knows it")
        url = f"{self._server_manager_url.rstrip('/')}/FLSe/getPort/{self._task_id}"
        try:
            port = json.loads(await asyncio.to_thread(_get, url))["port"]
            return f"{self._aggregation_host or server_ip}:{int(port)}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NoPortError(server_ip, f"{without_password(url)}: {error!r}") from error


def _get(url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ValueError("it is no HTTP URL")
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - the scheme is checked above
        return bytes(answer.read(_MAX_ANSWER_BYTES))
