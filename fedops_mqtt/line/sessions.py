"""What the line keeps of one joined process, one upload and the end of the run; `hub` owns them all."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from fedops_mqtt.line.codec import FrameReader
from fedops_mqtt.line.wire import ControlLine
from fedops_mqtt.protocol import RunOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class DepartedClient:
    """The run is over, and how."""

    outcome: RunOutcome
    reason: str


@dataclass(slots=True, kw_only=True)
class Upload:
    """A reply that is arriving; it outlives connection and session: a retry goes on where the last try broke."""

    reader: FrameReader
    turn: int = 0
    """Grows with each request that takes the upload over; an older request sees that and stops feeding."""


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """One joined process, as the line's thread sees it. Events are touched in the line's thread only."""

    id: str
    mac: str
    node_id: int
    token: str | None
    mail: asyncio.Event = field(default_factory=asyncio.Event)
    control: asyncio.Event = field(default_factory=asyncio.Event)
    orders: deque[ControlLine] = field(default_factory=deque)
    is_over: bool = False
    has_disconnected: bool = False
    unanswered_pings: int = 0
    polls: int = 0
