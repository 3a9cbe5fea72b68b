"""What both ends of the line exchange besides frames: paths, headers, JSON bodies, error codes. Imports no flwr.

Each body is a frozen model: no unknown fields in what we send, unknown ones ignored in what we receive.
"""

from dataclasses import dataclass
from typing import Annotated, Self, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from fedops_mqtt.line.errors import FrameError
from fedops_mqtt.protocol import KnownCode, MacAddress, Outcome, RunId, RunOutcome, clip
from fedops_mqtt.protocol.identity import Reason, Text
from fedops_mqtt.protocol.values import MAX_LIMIT_S, Count
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


# Everything that the other end chooses is bounded here: it goes on into waits, files and messages on the bus.

Limit = Annotated[float, Field(gt=0, le=MAX_LIMIT_S)]
NodeId = Annotated[int, Field(ge=0, lt=2**64)]
SessionId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,256}$")]
"""Travels as a header."""
Clipped = Annotated[str, AfterValidator(clip)]
"""A reason that a strategy or an error may have made of any length: cut where it is sent, and where it comes in."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class JoinRequest(_Body):
    """A training process asks to be let in; `run_id` is null for a bare FedOps start, which does not know it."""

    run_id: RunId | None = None
    client_mac: MacAddress
    instance: Annotated[Text, Field(min_length=1)]
    attempt: Count


class JoinAnswer(_Body):
    """The server lets it in; `session` names it from now on. Limits as in `LineLimits`."""

    run_id: RunId
    launch: Count
    session: SessionId
    node_id: NodeId
    ping_s: Limit
    poll_s: Limit
    round_s: Limit
    max_message_bytes: Count
    compress_level: Annotated[int, Field(ge=0, le=22)] = 0
    compress_threshold_bytes: Count = 0


class LeaveRequest(_Body):
    """A training process reports how it ended."""

    outcome: Outcome
    reason: Reason | None = None
    reason_code: KnownCode = None


class PongRequest(_Body):
    """The answer to the ping of this number."""

    ping: Count


class ControlLine(_Body):
    """One line of the control stream; exactly one of them is set."""

    ping: Count | None = None
    stop: Clipped | None = None
    outcome: Outcome | None = None
    """With `stop`: the server holds the client for this (a limit: failed), null if it was merely stopped."""
    gone: RunOutcome | None = None
    reason: Clipped | None = None


class ReplyState(_Body):
    """What the server has of an upload: `is_done` when nothing more is wanted (it has it, or does not wait for it)."""

    received_bytes: Count = 0
    is_done: bool = False
    was_taken: bool = False


class Refusal(_Body):
    """The body of every answer that is not a success."""

    code: Text
    reason: Clipped = ""
    outcome: Text | None = None

    @model_validator(mode="after")
    def _check_outcome(self) -> Self:
        if self.outcome is not None and self.code in _OUTCOMES:
            _OUTCOMES[self.code](self.outcome)
        return self


_OUTCOMES = {"gone": RunOutcome, "ended": Outcome}
"""What the outcome is of, by code: of the run, or of this client's part in it."""


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
