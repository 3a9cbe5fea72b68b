"""What a connection tells: frozen events, in the order in which things happened at the broker and to the connection."""

from dataclasses import dataclass

from fedops_mqtt.protocol import Message, ProtocolError, Topic


@dataclass(frozen=True, slots=True)
class Connected:
    """Connected and subscribed (again): owners announce, readers start their leases anew."""

    protocol_version: str
    """`5` or `3.1.1`."""
    at_mono: float
    """`time.monotonic()` at that moment, s."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone; the bus connects again by itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A valid message. `is_retained`: the broker's copy for a newcomer, not a live word."""

    topic: Topic
    message: Message
    is_retained: bool


@dataclass(frozen=True, slots=True)
class Cleared:
    """Somebody removed what the broker retained here: a run was archived, a client was forgotten."""

    topic: Topic


@dataclass(frozen=True, slots=True)
class Malformed:
    """Something that is no message of the protocol; it was counted, logged and dropped."""

    topic_text: str
    error: ProtocolError


@dataclass(frozen=True, slots=True)
class Dropped:
    """The broker's count of messages that it has dropped since its start, to whomever: their queues were full."""

    num_messages: int


BusEvent = Connected | Disconnected | Received | Cleared | Malformed | Dropped
