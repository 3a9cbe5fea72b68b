"""The list of a run's clients as statuses can carry it: in parts, where a run has more than one message lists."""

from collections.abc import Mapping
from heapq import nsmallest
from typing import Protocol, TypeVar

import orjson

from fedops_mqtt.protocol.messages import MemberCondition, RunMember, RunStatus, ServerClient, ServerStatus
from fedops_mqtt.protocol.values import MAX_BRACKETS

Listed = TypeVar("Listed", RunMember, ServerClient)
Status = TypeVar("Status", RunStatus, ServerStatus)

MAX_LISTED = 1000
"""Clients of one run that a status lists; of a larger run the next statuses list the others."""
MAX_SENT_BYTES = 368 * 1024
"""Of such a status: the shipped brokers take 384 KiB, topic and properties included, and disconnect who sends more."""
_CLIENT_BYTES = 192
"""One client without its reason: MAC, status, attempt, phase, round, reason code, and the names of all these."""
_CHARACTER_BYTES = 6
"""At most: a control character, escaped."""
_REST_BRACKETS = 8192
"""For all that a status holds beside its clients: a reason and a few texts may be made of nothing else."""
_FINE = frozenset({MemberCondition.TRAINING, MemberCondition.FINISHED})


class _AnyMember(Protocol):
    @property
    def status(self) -> MemberCondition: ...

    @property
    def attempt(self) -> int: ...

    @property
    def reason(self) -> str | None: ...


AnyMember = TypeVar("AnyMember", bound=_AnyMember)


class Roster:
    """Chooses which clients of a run each status lists; one that is not listed stays as it was listed before."""

    def __init__(self) -> None:
        self._listed: dict[str, tuple[tuple[object, ...], int]] = {}
        self._number = 0

    def part(self, clients: Mapping[str, AnyMember]) -> Mapping[str, AnyMember]:
        """Return the clients that the next status lists: all, or `MAX_LISTED` of them.

        First those that are not as they were listed last, then those in trouble, then those that were not listed for
        longest: a reader that is there from the start misses nothing, a newcomer has them all after some heartbeats.
        """
        if len(clients) <= MAX_LISTED:
            return clients

        def urgency(each: tuple[str, AnyMember]) -> tuple[bool, bool, int]:
            mac, client = each
            before, number = self._listed.get(mac, (None, 0))
            return before == _gist(client), client.status in _FINE, number

        self._number += 1
        chosen = dict(nsmallest(MAX_LISTED, clients.items(), key=urgency))
        self._listed.update((mac, (_gist(client), self._number)) for mac, client in chosen.items())
        return chosen


def _gist(client: _AnyMember) -> tuple[object, ...]:
    return client.status, client.attempt, client.reason


def with_clients(status: Status, clients: Mapping[str, Listed]) -> Status:
    """Return a status that lists these clients, at most `MAX_LISTED`; reasons that do not fit are shortened alike."""
    reasons = [each.reason for each in clients.values() if each.reason]
    num_bytes = MAX_SENT_BYTES - len(status.model_dump_json().encode()) - _CLIENT_BYTES * len(clients)
    num_brackets = MAX_BRACKETS - _REST_BRACKETS - len(clients)
    fits = sum(len(orjson.dumps(each)) for each in reasons) <= num_bytes
    if not fits or sum(each.count("[") + each.count("{") for each in reasons) > num_brackets:
        share = max(0, min(num_bytes // _CHARACTER_BYTES, num_brackets)) // max(1, len(reasons))
        clients = {mac: _shortened(each, share) for mac, each in clients.items()}
    return status.model_copy(update={"clients": dict(clients)})


def _shortened(client: Listed, num_characters: int) -> Listed:
    reason = client.reason
    if reason is None or len(reason) <= num_characters:
        return client
    return client.model_copy(update={"reason": reason[:num_characters] or None})
