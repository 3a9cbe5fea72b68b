"""Fencing: every status of an owner carries a stamp, and only a higher one than the last taken is news."""

from dataclasses import dataclass, field
from typing import NamedTuple

from fedops_mqtt.protocol import LAST_SEQ as LAST_SEQ
from fedops_mqtt.protocol import ClientStatus, OwnedStatus


class Stamp(NamedTuple):
    """Order of an owner's statuses: first by connection, then within it."""

    epoch: int
    seq: int


def stamp_of(status: OwnedStatus) -> Stamp:
    """Return the stamp of a status."""
    return Stamp(status.epoch, status.seq)


def next_term(persisted: int, unix_s: int) -> int:
    """Return the term of a manager that begins to lead: above every earlier one, and not below the clock."""
    return max(persisted + 1, unix_s)


def start_of(term: int, unix_ms: int) -> int:
    """Return when a leader's instance began, ms: a higher term is newer by any clock, else its clock decides.

    Two that share no database may begin in one second, under one term: the later is the newer.
    """
    return term * 1000 + unix_ms % 1000


MIN_UNHEARD = 3
"""Clients whose beginning is missing until that is the broker's doing: one may have lost a status by itself."""

ADVICE = "raise max_queued_messages at the broker (100000), and look for a slow reader"


@dataclass(kw_only=True, slots=True)
class DroppedMessageDetector:
    """For one reader; `listen` at every (re)connect, before what the broker retains is noted.

    Attributes:
        num_dropped: messages that the broker reports as dropped while this reader listened, for any reader.
        unheard: clients, by task and MAC, whose status before the first one received must have been dropped.
    """

    num_dropped: int = 0
    dropped_topics: set[tuple[str, str]] = field(default_factory=set)
    _counted: int | None = None
    _forgotten: set[tuple[str, str]] = field(default_factory=set)

    def listen(self) -> None:
        """The broker's next count is where ours begins: it may be another broker, or the same one started anew."""
        self._counted = None

    def count(self, num_messages: int) -> None:
        """Note the broker's own count of what it has dropped since its start."""
        if self._counted is not None:
            self.num_dropped += max(0, num_messages - self._counted)
        self._counted = num_messages

    def note(self, status: ClientStatus, *, is_known: bool, is_retained: bool) -> None:
        """Note a client's status: a live one that is not its first, of an unknown client, is preceded by a lost one.

        Retained or live, the status before it was on its way to this reader: seq begins at 1 and QoS 1 keeps the order.
        """
        key = (status.task_id, status.client_mac)
        if is_retained:
            self.dropped_topics.discard(key)
        elif not is_known and key not in self._forgotten and 1 < status.seq < LAST_SEQ:
            self.dropped_topics.add(key)
        self._forgotten.discard(key)

    def forget(self, task_id: str, client_mac: str) -> None:
        """Note that what was retained of a client was cleared: if it lives, it publishes on."""
        self.dropped_topics.discard((task_id, client_mac))
        self._forgotten.add((task_id, client_mac))

    @property
    def problem(self) -> str | None:
        """What is wrong and what to do, for people; None while nothing is known to be missing."""
        if self.num_dropped:
            seen = f"the broker dropped {self.num_dropped} messages"
        elif len(self.dropped_topics) >= MIN_UNHEARD:
            seen = f"{len(self.dropped_topics)} clients are present whose earlier statuses the broker dropped"
        else:
            return None
        return f"{seen}: clients may be missing; {ADVICE}"
