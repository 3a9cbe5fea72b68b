"""Who may publish on a retained status topic: its owner judges each status that it reads on its own topic.

One rule above all: readers believe the highest epoch, so an owner must always stand above whatever the broker retains.
Two living owners are distinguished by `instance`, which sorts by start: the older one yields, so exactly one does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

REPAIR_INTERVAL_S = 1.0
"""Two owners that repair against each other cost one status a second, not a storm."""

HEARTBEAT_SPREAD = 0.2
"""Share of a heartbeat that is left to luck: a fleet that came back within a second must not beat as one for ever."""

_BORN_MS = 1_760_000_000_000
_MAX_LEAD_MS = 100 * 365 * 86_400_000
"""100 years, which takes in clocks of 32 bits at their end (2106). An epoch without a limit would shut its owner out
for as long as the lease of its publisher."""

_LAST_MS = 16**12 - 1
"""The largest time that sorts as text; an epoch adopted from a broken clock may be above it."""

_MAX_REMEMBERED_INSTANCES = 8
"""Other instances whose last epoch is remembered; restarts in a row leave one each."""


def new_instance(unix_ms: int, random_hex: str, *, last_epoch: int = 0) -> str:
    """Return a name for a process that starts now; names sort by start: 12 hex digits of ms reach the year 10889.

    `last_epoch`: the last one of the same owner; where the clock was set back, the name still sorts after it.
    """
    return f"{max(unix_ms, min(last_epoch + 1, _LAST_MS)):012x}-{random_hex}"


def next_epoch(persisted: int, unix_ms: int) -> int:
    """Return the epoch of a new connection: above every earlier one, even where the clock was set back."""
    return max(persisted + 1, unix_ms)


def latest_epoch(unix_ms: int) -> int:
    """Return the highest epoch that is believed; it moves, so that even who stands there can be stood above.

    Of a reader whose clock was never set the day of this protocol counts.
    """
    return max(unix_ms, _BORN_MS) + _MAX_LEAD_MS


def next_beat_s(heartbeat_s: float, luck: float) -> float:
    """Return how long after a status the next heartbeat is due, never later than promised; `luck` is from 0 to 1."""
    return heartbeat_s * (1 - HEARTBEAT_SPREAD * luck)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenStatus:
    """One status read on the own topic.

    Attributes:
        is_retained: the broker's copy for a newcomer, not a live seen.
        is_ahead: its seq is above all that its reader has published on this connection.
    """

    instance: str
    epoch: int
    is_out: bool
    is_retained: bool
    is_ahead: bool = False


@dataclass(frozen=True, slots=True)
class Ignore:
    """Nothing to do: an echo, or a status that the birth on its way will replace."""


@dataclass(frozen=True, slots=True)
class Repair:
    """The broker may retain an older status: publish the snapshot again at this time of the caller's clock, s."""

    at: float


@dataclass(frozen=True, slots=True)
class Adopt:
    """An older status stands above this owner's (state lost, clock behind): take its epoch, reconnect above it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Yield:
    """A newer living instance has this identity: leave it alone and end."""

    instance: str
    epoch: int


Decision = Ignore | Repair | Adopt | Yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """The state of an owner's own topic, as far as it was read.

    Attributes:
        instance: this process, see `new_instance`.
        epoch: of the present connection; 0 before the first.
        is_echoed: an own status of this epoch came back, so whatever older comes now stands over it at the broker.
        repair_at: when the last repair was due, or the one on its way is; the caller's clock, s.
        others: highest epoch read of each other instance.
    """

    instance: str
    epoch: int = 0
    is_echoed: bool = False
    repair_at: float = float("-inf")
    others: Mapping[str, int] = field(default_factory=dict)

    def connected(self, epoch: int) -> "Ownership":
        """Return the knowledge at the start of a new connection."""
        return replace(self, epoch=epoch, is_echoed=False)


def judge(owner: Ownership, seen: SeenStatus, *, now: float) -> tuple[Ownership, Decision]:
    """Return the owner's knowledge after reading a status on its own topic, and what it has to do about it."""
    if seen.instance == owner.instance:
        return _judge_place(owner, seen, now=now)
    is_alive = _shows_life(owner, seen)
    owner = _remember(owner, seen)
    if is_alive and seen.instance > owner.instance:
        return owner, Yield(seen.instance, seen.epoch)
    return _judge_place(owner, seen, now=now)


def judge_cleared(owner: Ownership, *, now: float) -> tuple[Ownership, Decision]:
    """Return what to do when nothing readable is retained on a living owner's topic: publish the snapshot."""
    return _schedule_repair(owner, now=now)


def _shows_life(owner: Ownership, seen: SeenStatus) -> bool:
    """A live status that is no will; or a second connection: brokers that evict by client id never show both alive."""
    is_live = not seen.is_retained and not seen.is_out
    return is_live or owner.others.get(seen.instance, seen.epoch) < seen.epoch


def _remember(owner: Ownership, seen: SeenStatus) -> Ownership:
    known = dict(owner.others)
    known[seen.instance] = max(known.pop(seen.instance, 0), seen.epoch)
    return replace(owner, others=dict(list(known.items())[-_MAX_REMEMBERED_INSTANCES:]))


def _judge_place(owner: Ownership, seen: SeenStatus, *, now: float) -> tuple[Ownership, Decision]:
    if seen.epoch > owner.epoch:
        return owner, Adopt(seen.epoch)
    if seen.epoch == owner.epoch and seen.instance == owner.instance and not seen.is_ahead:
        return replace(owner, is_echoed=True), Ignore()
    if seen.epoch == owner.epoch:
        return owner, Adopt(seen.epoch)
    if not owner.is_echoed:
        return owner, Ignore()
    return _schedule_repair(owner, now=now)


def _schedule_repair(owner: Ownership, *, now: float) -> tuple[Ownership, Decision]:
    is_on_its_way = owner.repair_at > now
    at = owner.repair_at if is_on_its_way else max(now, owner.repair_at + REPAIR_INTERVAL_S)
    return replace(owner, repair_at=at), Repair(at)
