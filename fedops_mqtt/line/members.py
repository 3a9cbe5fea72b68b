"""Who is in the run: every client that joined, where it stands, how it ended. Pure: no clock, lock or socket.

A client is a member from the moment its control request is open until it ends; present means that the request is open
now. The same attempt may come back after it was lost, a higher attempt replaces a lower one, nothing else gets in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from fedops_mqtt.line.errors import LineRefusedError
from fedops_mqtt.line.identity import node_id_of
from fedops_mqtt.protocol import Outcome, Phase, ReasonCode


class ChangeKind(StrEnum):
    """What happened to a member."""

    JOINED = "joined"
    REJOINED = "rejoined"
    PROGRESS = "progress"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineMember:
    """One client in the run; `outcome` is None while it may still take part, `bytes_*` of all its attempts."""

    mac: str
    node_id: int
    instance: str
    attempt: int
    session: str = field(repr=False)
    """Authenticates the client on the line: not for logs."""
    is_present: bool = False
    has_joined: bool = False
    phase: Phase = Phase.JOINING
    round: int | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    reason_code: ReasonCode | None = None
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberChange:
    """One change, with the member as it is after it."""

    kind: ChangeKind
    member: LineMember


class Members:
    """The members of one run, by MAC; each command returns the changes it made (none, if nothing is new)."""

    def __init__(self) -> None:
        self._by_mac: dict[str, LineMember] = {}

    @property
    def by_mac(self) -> Mapping[str, LineMember]:
        """Everybody who ever joined, as they are now."""
        return MappingProxyType(self._by_mac)

    def present_node_ids(self) -> list[int]:
        """Return the node ids that can be given work, in the order they first joined."""
        return [member.node_id for member in self._by_mac.values() if member.is_present]

    def check_join(self, mac: str, instance: str, attempt: int) -> None:
        """Check that this attempt may join.

        Raises:
            LineRefusedError: 409 for an attempt that another has replaced, 410 for one that has ended.
        """
        known = self._by_mac.get(mac)
        if known is None or attempt > known.attempt:
            return
        if attempt < known.attempt:
            raise LineRefusedError(
                status=409, code="evicted", reason=f"attempt {attempt} was replaced by attempt {known.attempt}"
            )
        if instance != known.instance:
            raise LineRefusedError(
                status=409, code="evicted", reason=f"attempt {attempt} belongs to instance {known.instance}"
            )
        if known.outcome is not None:
            raise LineRefusedError(status=410, code="ended", reason=known.reason or "", outcome=known.outcome)

    def join(self, mac: str, instance: str, attempt: int, session: str) -> LineMember | None:
        """Seat an attempt that `check_join` let through; returns the attempt that it evicts, if any."""
        known = self._by_mac.get(mac)
        if known is not None and known.attempt == attempt:
            self._by_mac[mac] = replace(known, session=session, is_present=False)
            return None
        self._by_mac[mac] = LineMember(
            mac=mac,
            node_id=node_id_of(mac),
            instance=instance,
            attempt=attempt,
            session=session,
            bytes_in=known.bytes_in if known is not None else 0,
            bytes_out=known.bytes_out if known is not None else 0,
        )
        return known

    def attach(self, session: str) -> list[MemberChange]:
        """The control request of a session is open: its member is present."""
        member = self._of(session)
        if member is None or member.is_present:
            return []
        kind = ChangeKind.REJOINED if member.has_joined else ChangeKind.JOINED
        return self._set(kind, replace(member, is_present=True, has_joined=True, phase=Phase.WAITING, reason=None))

    def detach(self, session: str, reason: str) -> list[MemberChange]:
        """The control request has closed without a leave, or none came: the client is lost, until it comes back."""
        member = self._of(session)
        if member is None or not member.has_joined:
            return []
        return self._set(ChangeKind.LOST, replace(member, is_present=False, reason=reason))

    def end(self, mac: str, outcome: Outcome, reason: str | None, code: ReasonCode | None = None) -> list[MemberChange]:
        """A client is done, by its own report, the daemon's, or a limit; the first outcome stands."""
        member = self._by_mac.get(mac)
        if member is None or member.outcome is not None:
            return []
        ended = replace(member, is_present=False, outcome=outcome, reason=reason, reason_code=code)
        return self._set(ChangeKind(outcome.value), ended)

    def progress(self, mac: str, phase: Phase, round_: int | None) -> list[MemberChange]:
        """A client entered a phase; `round_` None keeps the last known round."""
        member = self._by_mac[mac]
        round_ = member.round if round_ is None else round_
        if member.outcome is not None or (member.phase, member.round) == (phase, round_):
            return []
        return self._set(ChangeKind.PROGRESS, replace(member, phase=phase, round=round_))

    def count(self, mac: str, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """Add to a member's counters."""
        member = self._by_mac[mac]
        self._by_mac[mac] = replace(member, bytes_in=member.bytes_in + bytes_in, bytes_out=member.bytes_out + bytes_out)

    def _of(self, session: str) -> LineMember | None:
        return next((m for m in self._by_mac.values() if m.session == session and m.outcome is None), None)

    def _set(self, kind: ChangeKind, member: LineMember) -> list[MemberChange]:
        self._by_mac[member.mac] = member
        return [MemberChange(kind=kind, member=member)]
