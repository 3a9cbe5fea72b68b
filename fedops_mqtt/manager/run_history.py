"""What happened to a run, told for the journal: our own deeds as they are, others' words by what they changed."""

from collections.abc import Iterator, Sequence
from typing import Any

from fedops_mqtt.core.fleet import StatusView
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_events import RunEvent, RunWaits
from fedops_mqtt.core.run_member import Member
from fedops_mqtt.manager.journal import JournalEvent
from fedops_mqtt.protocol import ClientStatus, ServerStatus


def tell(before: Run, after: Run, events: Sequence[RunEvent], now: float) -> Iterator[JournalEvent]:
    """Yield what is worth remembering of the step from `before` to `after`."""
    ours = [event for event in events if not isinstance(event, ServerStatus | StatusView | RunWaits)]
    for event in ours:
        detail = {name: getattr(event, name) for name in event.__slots__}
        mac = detail.pop("client_mac", None)
        yield _event(after, type(event).__name__, now, mac, detail)
    if _server_line(before.server) != _server_line(after.server) and after.server is not None:
        yield _event(after, "ServerSaid", now, None, _server_line(after.server))
    told = {getattr(event, "client_mac", None) for event in ours}
    for mac, member in after.members.items():
        known = before.members.get(mac)
        if known is not member and mac not in told and _member_line(known) != _member_line(member):
            yield _event(after, "MemberSaid", now, mac, _member_line(member))


def note_client(status: ClientStatus, now: float) -> JournalEvent:
    """Return a client's change of status."""
    detail = {"status": status.status.value, "reason": status.reason, "instance": status.instance}
    return JournalEvent(at=now, kind="ClientSaid", task_id=status.task_id, client_mac=status.client_mac, detail=detail)


def _event(run: Run, kind: str, now: float, mac: str | None, detail: dict[str, Any]) -> JournalEvent:
    return JournalEvent(at=now, kind=kind, run_id=run.run_id, task_id=run.spec.task_id, client_mac=mac, detail=detail)


def _server_line(word: ServerStatus | None) -> dict[str, Any]:
    if word is None:
        return {}
    return {"status": word.status.value, "launch": word.launch, "server_ip": word.server_ip, "reason": word.reason}


def _member_line(member: Member | None) -> dict[str, Any]:
    if member is None:
        return {}
    return {"status": member.status.value, "attempt": member.attempt, "reason": member.reason}
