"""One FedOps client as it is reached over HTTP: `GET /online` and `POST /start`, in either generation's names.

Nothing here decides anything: an answer is data, an answer that does not come is an error with its cause.
"""

from typing import Annotated, Any, Self

import httpx
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedops_mqtt.bus.address import without_password
from fedops_mqtt.protocol import AnyMacAddress, TaskId


class FedOpsHttpError(Exception):
    """A FedOps client did not answer as one."""

    def __init__(self, url: str, problem: str, *, is_slow: bool = False, is_absent: bool = False) -> None:
        self.url = url
        self.problem = problem
        self.is_slow = is_slow
        """True when somebody is there who does not answer in time: a client that trains may do that."""
        self.is_absent = is_absent
        """True when nobody is there to answer, or whoever was died over it."""
        super().__init__(f"FedOps client at {without_password(url)}: {problem}")


def _names(new: str, first: str) -> Any:
    return Field(validation_alias=AliasChoices(new, first))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


Count = Annotated[int, Field(ge=0)]
_Text = Annotated[str, BeforeValidator(_text)]


class OnlineAnswer(BaseModel):
    """What `/online` and `/start` answer (FedOps client_utils.FLClientStatus, both generations of names)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task_id: TaskId = _names("task_id", "FL_task_id")
    client_mac: AnyMacAddress = _names("client_mac", "FL_client_mac")
    client_name: _Text = ""
    is_online: bool = _names("client_online", "FL_client_online")
    is_training: bool = _names("client_start", "FL_client_start")
    has_failed: bool = Field(default=False, validation_alias=AliasChoices("client_fail", "FL_client_fail"))
    server_ip: str | None = Field(default=None, validation_alias=AliasChoices("server_IP", "FL_server_IP"))

    @classmethod
    def parse(cls, url: str, body: bytes) -> Self:
        """Return what an answer says.

        Raises:
            OldClientError: it is no FedOps client's.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise FedOpsHttpError(url, f"answers something else than a status ({where}: {first['msg']})") from error


class FedOpsHttpClient:
    """A FedOps client at `url` (`http://host:8003`); `timeout_s` is for one `/online`, a start may take `start_s`."""

    def __init__(self, http: httpx.AsyncClient, url: str, *, timeout_s: float, start_s: float) -> None:
        self.url = url.rstrip("/")
        self._http = http
        self._timeout_s = timeout_s
        self._start_s = start_s

    async def online(self) -> OnlineAnswer:
        """Ask how it is.

        Raises:
            OldClientError: it does not answer, or says something else.
        """
        return await self._ask("GET", "/online", self._timeout_s)

    async def start(self, *, server_ip: str, client_mac: str) -> OnlineAnswer:
        """Tell it to train; while this waits it asks its manager back (FedOps client.app: `/info/`, `getPort`).

        Raises:
            OldClientError: it does not answer, or refuses.
        """
        body = {"server_ip": server_ip, "client_mac": client_mac}
        return await self._ask("POST", "/start", self._start_s, body)

    async def _ask(self, method: str, path: str, timeout_s: float, body: dict[str, str] | None = None) -> OnlineAnswer:
        try:
            response = await self._http.request(method, self.url + path, json=body, timeout=timeout_s)
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
            raise FedOpsHttpError(self.url, f"no answer to {path} within {timeout_s:g} s", is_slow=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            is_absent = isinstance(error, _NOBODY_THERE)
            problem = f"{path}: {_text_of(error)}"
            raise FedOpsHttpError(self.url, problem, is_absent=is_absent) from error
        if response.status_code != httpx.codes.OK:
            raise FedOpsHttpError(self.url, f"answered {path} with HTTP {response.status_code}")
        return OnlineAnswer.parse(self.url, response.content)


def _text_of(error: Exception) -> str:
    """Return what went wrong; a malformed URL is not repeated, which may hold a password."""
    return "the URL is malformed" if isinstance(error, httpx.InvalidURL) else str(error) or type(error).__name__


_NOBODY_THERE = (httpx.ConnectTimeout, httpx.NetworkError, httpx.RemoteProtocolError)
"""How it looks when a process is not there, or ends before it has answered."""
