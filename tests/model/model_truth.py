"""What really happened in a schedule, kept beside the parts and never shown to them: invariants are judged by it.

The parts' own records would agree with themselves after a defect; what is written here comes from the deeds.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from model_owner import HEARTBEAT_S

from fedops_mqtt.core.fencing import Stamp, stamp_of
from fedops_mqtt.core.fleet import LEASE_HEARTBEATS, Fleet
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import TriggerFired
from fedops_mqtt.protocol import MemberCondition, RunOutcome

Complain = Callable[[str], None]
"""Takes a sentence, and raises."""

_LEASE_S = LEASE_HEARTBEATS * HEARTBEAT_S
_REPAIR_S = 3.0
"""A repair is due after a second, and the quiet network brings it in no time; the next heartbeat would come later."""


@dataclass(kw_only=True)
class ReaderCheck:
    """One reader, and what the model knows of it: since when its connection stands, and how far it has read."""

    name: str
    fleet: Fleet
    connected_at: Callable[[], float | None]
    _read: dict[tuple[str, str], tuple[str, Stamp]] = field(default_factory=dict)

    def check(self, now: float, complain: Complain) -> None:
        """G-4, after every step: nobody is silent to a reader that was deaf, and no reader goes back."""
        since = self.connected_at()
        for key, view in self.fleet.clients.items():
            if view.is_silent and view.since == now and (since is None or now - since < _LEASE_S):
                complain(f"G-4: {self.name} takes {key} as silent and hears the bus since {since} only")
            instance, stamp = view.status.instance, stamp_of(view.status)
            known = self._read.get(key)
            if known is not None and known[0] == instance and stamp < known[1]:
                complain(f"G-4: {self.name} had read {known} of {key} and believes {stamp} now")
            self._read[key] = (instance, stamp)
        for key in self._read.keys() - self.fleet.clients.keys():
            del self._read[key]


class Truth:
    """Deeds, by whoever did them; every method complains at once of what the guarantees exclude."""

    def __init__(self, complain: Complain) -> None:
        self._complain = complain
        self._started: Counter[tuple[str, str, int]] = Counter()
        self._stopped: dict[tuple[str, str], int] = {}
        self._finished: set[tuple[str, str]] = set()
        self._fired: dict[tuple[str, str, int], str] = {}
        self._outcomes: dict[str, tuple[RunOutcome | None, str | None]] = {}
        self._wrong_since: dict[str, float] = {}

    def training_starts(self, run_id: str, mac: str, attempt: int) -> None:
        """G-1: at most once an attempt, and not after a stop that covers it was kept."""
        self._started[run_id, mac, attempt] += 1
        if self._started[run_id, mac, attempt] > 1:
            self._complain(f"G-1: {mac} trains {run_id} attempt {attempt} twice")
        if attempt <= self._stopped.get((run_id, mac), 0):
            self._complain(f"G-1: {mac} trains {run_id} attempt {attempt}, which it had been told to stop")

    def stop_is_kept(self, run_id: str, mac: str, attempt: int) -> None:
        """A device has a stop of the present leader on its disk."""
        self._stopped[run_id, mac] = max(attempt, self._stopped.get((run_id, mac), 0))

    def finish_is_kept(self, run_id: str, mac: str) -> None:
        """A device has on its disk that its training finished."""
        self._finished.add((run_id, mac))

    def disk_is_lost(self, mac: str) -> None:
        """Nobody promises what was on a disk that is gone."""
        self._stopped = {key: attempt for key, attempt in self._stopped.items() if key[1] != mac}
        self._finished = {key for key in self._finished if key[1] != mac}

    def trigger_fires(self, run_id: str, action: TriggerFired) -> None:
        """G-6: an attempt is meant for one daemon, whoever leads."""
        key = (run_id, action.client_mac, action.attempt)
        if self._fired.setdefault(key, action.instance) != action.instance:
            self._complain(f"G-6: {key} fired at {self._fired[key]} and at {action.instance}")

    def run_is_written(self, run: Run) -> None:
        """G-3: an outcome comes with a reason, and stays."""
        ended = (run.outcome, run.reason)
        known = self._outcomes.get(run.run_id)
        if known is not None and known != ended:
            self._complain(f"G-3: run {run.run_id} ended as {known} and then as {ended}")
        if run.has_ended:
            self._outcomes[run.run_id] = ended
            if not run.reason:
                self._complain(f"G-3: run {run.run_id} ended as {run.outcome} without a reason")

    def turn_is_written(self, term: int, present: int) -> None:
        """G-6: a leader that was frozen while another took over writes nothing more."""
        if term < present:
            self._complain(f"G-6: a leader of term {term} writes, and term {present} leads")

    def check_retained(self, owner: str, *, epoch: int, kept: int | None, now: float) -> None:
        """G-4, in the quiet: an owner that is connected does not leave an older word of its topic at the broker."""
        if kept is not None and kept < epoch:
            since = self._wrong_since.setdefault(owner, now)
            if now - since > _REPAIR_S:
                self._complain(f"G-4: the broker keeps epoch {kept} of {owner} since {since:.2f}, which is at {epoch}")
        else:
            self._wrong_since.pop(owner, None)

    def check_members(self, run: Run, when: str) -> None:
        """G-2: a client that finished is known to have finished."""
        for mac in self._finished_of(run.run_id):
            member = run.members.get(mac)
            if member is None or member.status is not MemberCondition.FINISHED:
                self._complain(f"G-2 {when}: {mac} finished {run.run_id}, the manager says {member}")

    def _finished_of(self, run_id: str) -> Iterator[str]:
        return (mac for known, mac in sorted(self._finished) if known == run_id)
