"""The list of a run's clients as a status can carry it: a run may have more than one message lists."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

import orjson

from fedops_mqtt.protocol.messages import MemberCondition, RunMember, ServerClient
from fedops_mqtt.protocol.topics import Channel
from fedops_mqtt.protocol.values import MAX_BRACKETS, MAX_MEMBERS

Listed = TypeVar("Listed", RunMember, ServerClient)

_REST_BYTES = 192 * 1024
"""For all that a status says beside its clients; most of it is one reason and 256 metrics."""
_CLIENT_BYTES = 160
"""One client without its reason: MAC, status, attempt, phase, round, and the names of all these."""
_CHARACTER_BYTES = 6
"""At most: a control character, escaped."""
_REST_BRACKETS = 8192
"""As `_REST_BYTES`: a reason and a few texts may be made of nothing else."""
_FINE = frozenset({MemberCondition.TRAINING, MemberCondition.FINISHED})


class _Standing(Protocol):
    @property
    def status(self) -> MemberCondition: ...


Standing = TypeVar("Standing", bound=_Standing)


def choose(clients: Mapping[str, Standing]) -> Mapping[str, Standing]:
    """Return as many clients as a message lists, those in trouble first where it cannot list all."""
    if len(clients) <= MAX_MEMBERS:
        return clients
    return dict(sorted(clients.items(), key=lambda each: each[1].status in _FINE)[:MAX_MEMBERS])


def fit(clients: Mapping[str, Listed]) -> dict[str, Listed]:
    """Return the clients that a message can list; reasons that would not fit together are shortened, all alike."""
    clients = choose(clients)
    reasons = [each.reason for each in clients.values() if each.reason]
    num_bytes = Channel.RUN_STATUS.max_payload_bytes - _REST_BYTES - _CLIENT_BYTES * len(clients)
    num_brackets = MAX_BRACKETS - _REST_BRACKETS - len(clients)
    fits = sum(len(orjson.dumps(each)) for each in reasons) <= num_bytes
    if fits and sum(each.count("[") + each.count("{") for each in reasons) <= num_brackets:
        return dict(clients)
    share = min(num_bytes // _CHARACTER_BYTES, num_brackets) // len(reasons)
    return {mac: _shortened(each, share) for mac, each in clients.items()}


def _shortened(client: Listed, num_characters: int) -> Listed:
    reason = client.reason
    if reason is None or len(reason) <= num_characters:
        return client
    return client.model_copy(update={"reason": reason[:num_characters] or None})
