"""What a reader can tell of statuses that its broker kept from it: a full queue drops them, and nobody is told.

mosquitto drops beyond `max_queued_messages`, 1000 unless it is set: of a larger fleet a newcomer sees a part. Two signs
tell of it: the broker's own count, where it may be read, and clients that speak on though nobody heard them begin.
"""

from dataclasses import dataclass, field

from fedops_mqtt.core.fencing import LAST_SEQ
from fedops_mqtt.protocol import ClientStatus

MIN_UNHEARD = 3
"""Clients of whom the beginning is missing until that is the broker's doing: one may have lost a word by itself."""

ADVICE = "raise max_queued_messages at the broker (100000), and look for a slow reader"


@dataclass(kw_only=True, slots=True)
class DroppedMessageDetector:
    """For one reader; `listen` at every (re)connect, before what the broker retains is noted.

    Attributes:
        num_dropped: messages that the broker says it dropped while this reader listened, to whomever.
        unheard: clients, by task and MAC, whose word before the first one heard must have been dropped.
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
        """Note a client's word: a live one that is not its first, of somebody unknown, is preceded by a lost one.

        Retained or live, the word before it was on its way to this reader: seq begins at 1 and QoS 1 keeps the order.
        """
        key = (status.task_id, status.client_mac)
        if is_retained:
            self.dropped_topics.discard(key)
        elif not is_known and key not in self._forgotten and 1 < status.seq < LAST_SEQ:
            self.dropped_topics.add(key)
        self._forgotten.discard(key)

    def forget(self, task_id: str, client_mac: str) -> None:
        """Note that what was retained of a client was cleared: if it lives, it speaks on."""
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
