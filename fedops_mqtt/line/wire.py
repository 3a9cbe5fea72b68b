"""What both ends of the line exchange besides frames: paths, headers, JSON bodies, error codes. Imports no flwr.

Each body is a frozen model: no unknown fields in what we send, unknown ones ignored in what we receive.
"""

from dataclasses import dataclass
from typing import Annotated, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedops_mqtt.line.errors import FrameError
from fedops_mqtt.protocol import MacAddress, Outcome, RunId, RunOutcome
from fedops_mqtt.protocol.identity import Reason, Text
from fedops_mqtt.protocol.wire import first_problem

PREFIX = "/line/v1"
HELLO_PATH = f"{PREFIX}/hello"
JOIN_PATH = f"{PREFIX}/join"
NEXT_PATH = f"{PREFIX}/next"
REPLY_PATH = f"{PREFIX}/reply/"
CONTROL_PATH = f"{PREFIX}/control"
PONG_PATH = f"{PREFIX}/pong"
LEAVE_PATH = f"{PREFIX}/leave"
APP_PATH = "/app/"
"""Before the digest of the app bundle that the run trains with."""

SESSION_HEADER = "line-session"
CLIENT_HEADER = "line-client"
"""MAC of the client that fetches an app: there is no session yet that names the token's owner."""
OFFSET_HEADER = "line-offset"
"""Byte of the frame that an upload starts at: what arrived before is not sent again."""
THEN_HEADER = "line-then"
"""`next` on an upload: the answer to a reply that is whole is that of `next`, which saves a round trip a message."""
LENGTH_HEADER = "line-length"
"""Bytes of the whole frame of an upload."""

MAX_BODY_BYTES = 64 * 1024
"""JSON bodies are small; frames have a limit of their own."""
JSON_TYPE = "application/json"
FRAME_TYPE = "application/x-fedops-frame"
CHUNK_BYTES = 1024 * 1024
"""Frames are written in pieces of this size: large enough to keep a link busy, small enough to feel a stall."""


Buffer = bytes | memoryview


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class JoinRequest(_Body):
    """A training process asks to be let in; `run_id` is null for a bare FedOps start, which does not know it."""

    run_id: RunId | None = None
    client_mac: MacAddress
    instance: Annotated[Text, Field(min_length=1)]
    attempt: Annotated[int, Field(ge=0)]


class JoinAnswer(_Body):
    """The server lets it in; `session` names it from now on. Limits as in `LineLimits`."""

    run_id: RunId
    launch: int
    session: str
    node_id: int
    ping_s: Annotated[float, Field(gt=0)]
    poll_s: Annotated[float, Field(gt=0)]
    round_s: Annotated[float, Field(gt=0)]
    max_message_bytes: int
    compress_level: int = 0
    compress_threshold_bytes: int = 0


class LeaveRequest(_Body):
    """A training process reports how it ended."""

    outcome: Outcome
    reason: Reason | None = None


class PongRequest(_Body):
    """The answer to the ping of this number."""

    ping: int


class ControlLine(_Body):
    """One line of the control stream; exactly one of them is set."""

    ping: int | None = None
    stop: str | None = None
    outcome: Outcome | None = None
    """With `stop`: the server holds the client for this (a limit: failed), null if it was merely stopped."""
    gone: RunOutcome | None = None
    reason: str | None = None


class ReplyState(_Body):
    """What the server has of an upload: `is_done` when nothing more is wanted (it has it, or does not wait for it)."""

    received_bytes: int = 0
    is_done: bool = False
    was_taken: bool = False


class Refusal(_Body):
    """The body of every answer that is not a success."""

    code: str
    reason: str = ""
    outcome: str | None = None


Body = TypeVar("Body", bound=_Body)


def encode_body(body: _Body) -> bytes:
    """Return a body as JSON, without what is unset."""
    return orjson.dumps(body.model_dump(mode="json", exclude_none=True))


def decode_body(kind: type[Body], data: bytes) -> Body:
    """Return a body read from JSON.

    Raises:
        FrameError: it is not JSON or not this kind of body.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise FrameError(f"{kind.__name__}: {first_problem(error, 'body')}") from error


MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LineLimits:
    """Limits in seconds (`_s`) and bytes; each is a setting of the FL server."""

    join_s: float = 120.0
    """Fewer clients than the run needs for longer than this ends the run."""
    round_s: float = 3600.0
    """One message is answered within this, whatever the strategy asks for; a client over it is dropped as failed."""
    run_s: float = 24 * 3600.0
    rejoin_s: float = 120.0
    """How long a client whose connection broke is waited for where no other can come in its place."""
    ping_s: float = 5.0
    """A vanished host is noticed within three of these."""
    poll_s: float = 25.0
    """Longest wait of one `next`; below the 30 to 60 s after which proxies cut silent requests."""
    stall_s: float = 60.0
    """A transfer that moves nothing for this long counts as broken."""
    max_message_bytes: int = 4 * 1024 * MIB

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"line limit {name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineCompression:
    """zstd for arrays of at least `threshold_bytes`, where a sample of them shrinks; trained weights rarely do."""

    level: int = 3
    threshold_bytes: int = 64 * 1024
