"""The other half of the shim: a FedOps client's calls to the FedOps managers that still stand before it.

Without it an unchanged client manager would wait for the end of the first training for ever. Nothing here may hold the
daemon up: a call that does not succeed within seconds is logged and left.
"""

import asyncio
import logging
import re
import urllib.request
from http.client import HTTPException
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from fedops_mqtt.bus import without_password
from fedops_mqtt.device.daemon import Notice
from fedops_mqtt.runtime.settings import ClientSettings

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
"""For a manager on the same device or site; FedOps itself waits for ten seconds."""
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_PROBLEM_CHARS = 300
_WITH_PORT = re.compile(r"(\[.*\]|[^:]*):\d+")


class NoServerError(ValueError):
    """A start names no FL server, or one without its port, and the rest cannot be found."""

    def __init__(self, server_ip: str | None, problem: str) -> None:
        self.server_ip = server_ip
        what = "the start has no server_ip" if server_ip is None else f"server_ip {server_ip!r} has no port"
        super().__init__(f"{what}: {problem}")


class _Port(BaseModel):
    """What a server manager answers to `FLSe/getPort`."""

    port: Annotated[int, Field(gt=0, le=65535)]


class _Info(BaseModel):
    """What a client manager answers to `/info/`."""

    GL_Model_V: Annotated[int, Field(ge=0, le=2**53)]


class ClientManagers:
    """FedOps' client manager and server manager by their URLs; None: there is none.

    `aggregation_host` takes the place of the host that a client manager has built in; with a port the server manager is
    not asked (FedOps client_api.get_port).
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
        """Return what the settings name; without a shim no client manager stands before this client."""
        return cls(
            client_manager_url=settings.client_manager_url if settings.http else None,
            server_manager_url=settings.server_manager_url,
            aggregation_host=settings.aggregation_host,
            task_id=task_id,
        )

    async def notify(self, notice: Notice) -> None:
        """Report `/trainFin`, `/trainFail` or `/flclient_out` (FedOps client_api.ClientMangerAPI)."""
        if self._client_manager_url is None:
            return
        url = f"{self._client_manager_url.rstrip('/')}/{notice}"
        try:
            await asyncio.to_thread(_get, url)
        except (OSError, ValueError) as error:
            logger.warning(
                "FedOps client manager was not notified", extra={"url": without_password(url), "problem": _brief(error)}
            )

    async def find_server(self, server_ip: str | None) -> str:
        """Return `host:port` of an FL server; FedOps' client managers name its host only, or nothing (`FLSe/getPort`).

        Raises:
            NoServerError: there is no port, and no server manager that has it.
        """
        for address in (server_ip, self._aggregation_host):
            if address is not None and _WITH_PORT.fullmatch(address):
                return address
        if self._server_manager_url is None:
            how = "set FEDOPS_SERVER_MANAGER_URL, whose getPort knows it, or FEDOPS_AGGREGATION_SERVER, or"
            raise NoServerError(server_ip, f'{how} send {{"server_ip": "HOST:PORT"}}')
        url = f"{self._server_manager_url.rstrip('/')}/FLSe/getPort/{self._task_id}"
        try:
            port = _Port.model_validate_json(await asyncio.to_thread(_get, url)).port
        except (OSError, ValueError) as error:
            raise NoServerError(server_ip, f"{without_password(url)}: {_brief(error)}") from error
        # FedOps' managers stand on the host of its FL servers, and so must ours where nothing names another.
        beside = re.sub(r":\d*$", "", urlsplit(self._server_manager_url).netloc.rpartition("@")[2])
        host = self._aggregation_host or server_ip or beside
        return f"{host}:{port}"

    async def find_gl_model(self) -> int | None:
        """Return the global model's number as the client manager gives it (`/info/`); None where none is given."""
        if self._client_manager_url is None:
            return None
        url = f"{self._client_manager_url.rstrip('/')}/info/"
        try:
            return _Info.model_validate_json(await asyncio.to_thread(_get, url)).GL_Model_V
        except (OSError, ValueError) as error:
            facts = {"url": without_password(url), "problem": _brief(error)}
            logger.warning("global model's number is unknown", extra=facts)
            return None


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy of the environment has no business between a device and its managers; most are on the device itself."""


def _get(url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ValueError("it is no HTTP URL")
    try:
        with _DIRECT.open(url, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read(_MAX_ANSWER_BYTES))
    except HTTPException as error:  # it is no OSError; its text may hold a part of the URL's password
        raise OSError(f"it is no URL, or no HTTP is spoken there ({type(error).__name__})") from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:_MAX_PROBLEM_CHARS]
