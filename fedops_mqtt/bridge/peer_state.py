"""The state of one FedOps client in the bridge: its last `/online`, its last outcome, the gateway it is to use.

The HTTP endpoints and the poller write here, the trainer reads and waits; it lives in one event loop.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import httpx
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedops_mqtt.bus.address import without_password
from fedops_mqtt.protocol import AnyMacAddress, Outcome, TaskId
from fedops_mqtt.protocol.wire import first_problem
from fedops_mqtt.training.pipe import MetricsReport


class FedOpsHttpError(Exception):
    """A FedOps client did not answer as one."""

    def __init__(self, url: str, problem: str, *, is_slow: bool = False, is_absent: bool = False) -> None:
        self.url = url
        self.problem = problem
        self.is_slow = is_slow
        """True when the client is there but does not answer in time: one that trains may do that."""
        self.is_absent = is_absent
        """True when there is no client to answer, or it died over it."""
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
        """Return the content of an answer.

        Raises:
            FedOpsHttpError: it is no FedOps client's.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            problem = first_problem(error, "body")
            raise FedOpsHttpError(url, f"answers something else than a status ({problem})") from error


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
            FedOpsHttpError: it does not answer, or answers something else.
        """
        return await self._ask("GET", "/online", self._timeout_s)

    async def start(self, *, server_ip: str, client_mac: str) -> OnlineAnswer:
        """Start its training; while this waits it asks its manager back (FedOps client.app: `/info/`, `getPort`).

        Raises:
            FedOpsHttpError: it does not answer, or refuses.
        """
        body = {"server_ip": server_ip, "client_mac": client_mac}
        return await self._ask("POST", "/start", self._start_s, body)

    async def _ask(self, method: str, path: str, timeout_s: float, body: dict[str, str] | None = None) -> OnlineAnswer:
        head = {"Accept-Encoding": "identity"}
        content = b""
        try:
            async with (
                asyncio.timeout(2 * timeout_s),  # httpx's own limit is for each part of an answer
                self._http.stream(method, self.url + path, json=body, headers=head, timeout=timeout_s) as response,
            ):
                async for part in response.aiter_raw():
                    content += part
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise FedOpsHttpError(self.url, f"answers {path} with more than {_MAX_ANSWER_BYTES:,} bytes")
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout, TimeoutError) as error:
            raise FedOpsHttpError(self.url, f"no answer to {path} within {timeout_s:g} s", is_slow=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            is_absent = isinstance(error, _NOBODY_THERE)
            problem = f"{path}: {_text_of(error)}"
            raise FedOpsHttpError(self.url, problem, is_absent=is_absent) from error
        if response.status_code != httpx.codes.OK:
            raise FedOpsHttpError(self.url, f"answered {path} with HTTP {response.status_code}")
        return OnlineAnswer.parse(self.url, content)


_MAX_ANSWER_BYTES = 64 * 1024
"""FedOps' status is under 1 KiB."""


def _text_of(error: Exception) -> str:
    """Return what went wrong; a malformed URL is not repeated, which may hold a password."""
    return "the URL is malformed" if isinstance(error, httpx.InvalidURL) else str(error) or type(error).__name__


_NOBODY_THERE = (httpx.ConnectTimeout, httpx.NetworkError, httpx.RemoteProtocolError)
"""How it looks when a process is not there, or ends before it has answered."""


@dataclass(kw_only=True)
class PeerState:
    """One FedOps client. `peer` is None where a FedOps client manager stands before it, which polls and starts it."""

    name: str
    """How people and logs call it: its URL, or the MAC that its client manager registered."""
    peer: FedOpsHttpClient | None
    client_mac: str | None = None
    """Its MAC on the bus; None until it is known."""
    own_mac: str | None = None
    """The MAC that it reports; another than `client_mac` where the bridge is configured to use another."""
    client_name: str = ""
    task_id: str | None = None
    hosts: frozenset[str] = frozenset()
    """Where its requests come from, as far as that is known: addresses."""
    has_time_result: bool = False
    """It has reported how long its training took, which a FedOps client does only when that went well."""
    gl_model: int = 0
    """Number of the global model of the last start, which it asks for in its own (`/info/`)."""
    is_here: bool = False
    is_training: bool = False
    """What it reports of itself: `client_start`."""
    server_ip: str | None = None
    """Where it reports to train, or trained last."""
    has_failed: bool = False
    wanted: str | None = None
    """`host:port` of the FL server that it shall train with now; None when nothing is wanted of it."""
    started_at: float = 0.0
    report: Callable[[MetricsReport], None] | None = None
    """Takes numbers of the current training."""
    is_lost: bool = False
    """It did not answer any more when it was asked last."""
    hurry: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set where it should be asked now how it is."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition, repr=False)
    _outcome: Outcome | None = None

    @property
    def has_start_pending(self) -> bool:
        """True from the moment it is to be started until it reports that it trains."""
        return self.wanted is not None and not self.is_training

    def is_at(self, server_ip: str) -> bool:
        """Return whether it trains at this server already; only the port decides, a host may have several names."""
        # No split_address: what an unchanged client reports may be no address at all
        return self.is_training and (self.server_ip or "").rpartition(":")[2] == server_ip.rpartition(":")[2]

    async def note_online(self, answer: OnlineAnswer) -> None:
        """Take in what it reports of itself; when it reports to train no more, how it ended is in the same answer."""
        async with self._changed:
            was_training = self.is_training
            self.is_here, self.is_lost = True, False
            self.is_training = answer.is_training
            self.server_ip = answer.server_ip
            if was_training and not answer.is_training and self.wanted is not None and self._outcome is None:
                has_just_failed = answer.has_failed and not self.has_failed
                self._outcome = Outcome.FAILED if has_just_failed else Outcome.FINISHED
            self.has_failed = answer.has_failed
            self._changed.notify_all()

    async def note_registration(self, answer: OnlineAnswer) -> None:
        """Take in what its client manager reports, which does not look while it trains, or looked before it did."""
        async with self._changed:
            self.is_here = True
            if self.wanted is None or answer.is_training:
                self.is_training = answer.is_training
            self._changed.notify_all()

    async def note_asked(self) -> None:
        """It has asked for the port of its FL server: its client manager has started it."""
        async with self._changed:
            self.is_training = self.is_training or self.peer is None
            self._changed.notify_all()

    async def note_outcome(self, outcome: Outcome) -> None:
        """Take in `/trainFin` or `/trainFail`."""
        async with self._changed:
            self.is_training = False
            if self.wanted is not None:
                self._outcome = outcome
            self._changed.notify_all()

    async def note_lost(self) -> None:
        """It does not answer any more."""
        async with self._changed:
            self.is_lost = True
            self._changed.notify_all()

    async def note_departed(self) -> None:
        """It is not there any more."""
        async with self._changed:
            self.is_here = self.is_training = False
            self._changed.notify_all()

    async def want(self, server_ip: str | None) -> None:
        """Set where it shall train from now on; None: nowhere."""
        async with self._changed:
            self.wanted = server_ip
            self._outcome = None
            self.has_time_result = False
            self.started_at = time.monotonic()
            self._changed.notify_all()

    async def until_outcome(self) -> Outcome:
        """Wait for its report on how the training that is wanted ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._outcome is not None)
            assert self._outcome is not None
            return self._outcome

    async def until_outcome_or_lost(self) -> Outcome | None:
        """Wait for its report, or until it does not answer any more (None); it is asked at once."""
        self.hurry.set()
        async with self._changed:
            await self._changed.wait_for(lambda: self._outcome is not None or self.is_lost)
            return self._outcome

    async def until_idle(self) -> None:
        """Wait until it reports that it does not train."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.is_training)

    async def until_training(self) -> None:
        """Wait until it reports that it trains, or has already reported how that ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.is_training or self._outcome is not None)
