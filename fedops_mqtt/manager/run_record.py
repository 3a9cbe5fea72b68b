"""A run as text and back, exactly: `load(dump(run)) == run`. Members are rows of their own, one changes at a time."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from pydantic import TypeAdapter

from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import Member

_RUN: TypeAdapter[Run] = TypeAdapter(Run)
_MEMBER: TypeAdapter[Member] = TypeAdapter(Member)


def dump_run(run: Run) -> str:
    """Return everything but the members."""
    return _RUN.dump_json(replace(run, members={})).decode()


def dump_member(member: Member) -> str:
    """Return one member."""
    return _MEMBER.dump_json(member).decode()


def load_run(state: str, members: Mapping[str, str]) -> Run:
    """Return the run of a `dump_run` and its `dump_member`s by MAC."""
    loaded = {mac: _MEMBER.validate_json(text) for mac, text in members.items()}
    return replace(_RUN.validate_json(state), members=MappingProxyType(loaded))


def count_members(run: Run) -> dict[str, int]:
    """Return how many of a run's members have which status."""
    return Counter(member.status.value for member in run.members.values())


def changed_members(before: Run | None, after: Run) -> dict[str, Member]:
    """Return the members that are not as they were."""
    if before is None:
        return dict(after.members)
    return {mac: member for mac, member in after.members.items() if before.members.get(mac) is not member}
