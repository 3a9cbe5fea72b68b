"""The texts and rows of the page, made of the API's records; pure, and tested without a page.

Online, Training and Offline are FedOps' own terms; the reason of an absence stands beside them.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from fedops_mqtt.core.fleet import ClientView, Presence
from fedops_mqtt.manager.api.models import ClientRecord, RunFacts
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.events import ChangeTopic, ClientKey, FleetChange, Subscription
from fedops_mqtt.protocol import MetricsKind, first_line, number_of, visible

Record = Mapping[str, Any]


class Label(StrEnum):
    """A client's status on the page."""

    ONLINE = "Online"
    TRAINING = "Training"
    OFFLINE = "Offline"
    UNCONFIRMED = "Unconfirmed"


REASONS = {
    "lost": "its connection broke (last will)",
    "silent": "no message for three heartbeats",
    "shutdown": "its daemon was ended",
    "rival": "another daemon has its identity",
}
"""What the reasons of an absence mean."""


def label_of(client: ClientRecord) -> Label:
    """Return a client's status on the page."""
    if client.presence is Presence.OUT:
        return Label.OFFLINE
    if client.run is not None:
        return Label.TRAINING
    return Label.ONLINE if client.presence is Presence.ONLINE else Label.UNCONFIRMED


def reason_of(client: ClientRecord) -> str:
    """Return the reason of a client's absence, or of its last failure, in one line."""
    if client.presence is Presence.OUT:
        return client.reason or ""
    if client.presence is Presence.UNCONFIRMED:
        return "retained status only"
    has_failed = client.run is None and client.last_run is not None and client.last_run.outcome == "failed"
    return short_reason(client.last_run.reason) if has_failed and client.last_run else ""


def row_of(client: ClientRecord, load: Record | None = None) -> dict[str, Any]:
    """Return a row of the fleet's table."""
    label = label_of(client)
    run = client.run if label is Label.TRAINING else None
    return {
        "id": f"{client.task_id}/{client.client_mac}",
        "name": readable(client.client_name or client.client_mac),
        "mac": client.client_mac,
        "task": client.task_id,
        "status": label.value,
        "reason": readable(reason_of(client)),
        "since": client.since.isoformat(),
        "phase": (run.phase or "") if run else "",
        "round": run.round if run else None,
        "last": client.last_run.outcome if client.last_run else "",
        "version": readable(client.agent.get("fedops-mqtt", "")),
        "load": load_text(load) if label is Label.TRAINING else "",
    }


def load_text(load: Record | None) -> str:
    """Return a client's load in a few characters."""
    if not load or number_of(load.get("cpu")) is None:
        return ""
    return f"CPU {amount(load, 'cpu'):.0f} %, mem {amount(load, 'memory'):.0f} %"


def amount(values: Record, name: str) -> float:
    """Return a number that a client measured; 0 for what is not one, as in rows that older versions wrote."""
    return float(number_of(values.get(name)) or 0)


def readable(text: Any, keep: str = "") -> str:
    """Return a text for people, its control characters shown: devices choose their names and reasons."""
    return visible(str(text), keep=keep)


def short_reason(text: str | None) -> str:
    """Return a reason in one line."""
    return readable(first_line(text))


def run_label(run: RunFacts) -> str:
    """Return a run's status on the page."""
    return str(run.outcome or ("stopping" if run.is_stopping else run.status))


def number(value: Any) -> str:
    """Return a number as people write it."""
    if isinstance(value, bool) or value is None:
        return "–" if value is None else str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def size(num_bytes: float) -> str:
    """Return bytes in a unit that fits."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    whole = int(max(0.0, seconds))
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    for unit, name, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // below} {small}"
    return f"{whole} s"


def clock(at: datetime) -> str:
    """Return a time as date and clock, UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


EVENT_TEXTS = {
    "RunCreated": "run requested",
    "ServerLaunched": "FL server launched",
    "ServerExited": "FL server ended",
    "ServerUnreachable": "FL server does not answer",
    "ServerHostLost": "host of the FL server",
    "ServerSaid": "FL server",
    "ClientChosen": "chosen",
    "TriggerFired": "start trigger sent",
    "StopSent": "stop sent",
    "MemberGaveUp": "given up",
    "MemberSaid": "now",
    "ClientSaid": "status",
    "StopRequested": "stop requested",
    "RunClosed": "run closed",
}
"""The journal's kinds of events, as the page shows them."""


def describe_event(event: Record) -> str:
    """Return an event of the journal in a few words."""
    detail = dict(event["detail"])
    facts = [readable(detail.pop(name)) for name in ("status", "outcome") if detail.get(name)]
    if detail.get("reason"):
        facts.append(short_reason(str(detail["reason"])))
    facts += [f"{name} {detail[name]}" for name in ("attempt", "launch") if detail.get(name)]
    return f"{EVENT_TEXTS.get(event['kind'], event['kind'])}: {', '.join(facts)}".removesuffix(": ")


Row = Mapping[str, Any]

LOAD_TOPICS = (ChangeTopic.METRICS, ChangeTopic.FORGOTTEN)
"""The changes from which loads are read; everything else is read from the fleet when a page is open."""

_IDLE_S = 3600.0


class FleetRows:
    """The fleet's clients as rows; `changes` is a subscription to `LOAD_TOPICS` that only this class reads."""

    def __init__(self, bus_reader: BusReader, changes: Subscription) -> None:
        self._bus_reader = bus_reader
        self._changes = changes
        self._rows: dict[ClientKey, Row] = {}
        self._made_of: dict[ClientKey, tuple[ClientView, Any]] = {}
        self._loads: dict[ClientKey, Mapping[str, Any]] = {}

    async def follow(self) -> None:
        """Read the clients' loads, for ever, also while no page is open."""
        while True:
            self._note_loads(await self._changes.wait(_IDLE_S))

    def current(self) -> Mapping[ClientKey, Row]:
        """Return the rows as they are now."""
        self._note_loads(self._changes.take())
        known = self._bus_reader.fleet.clients
        for key in self._rows.keys() - known.keys():
            del self._rows[key], self._made_of[key]
        for key, view in known.items():
            load = self._loads.get(key)
            made_of = self._made_of.get(key)
            if made_of is None or made_of[0] is not view or made_of[1] is not load:
                self._made_of[key] = view, load
                row = row_of(ClientRecord.of(view), load)
                if row != self._rows.get(key):
                    self._rows[key] = row
        return self._rows

    def _note_loads(self, changes: Iterable[FleetChange]) -> None:
        for each in changes:
            key = (each.task_id or "", each.client_mac or "")
            if each.kind is ChangeTopic.FORGOTTEN:
                self._loads.pop(key, None)
            elif each.kind is ChangeTopic.METRICS and each.record["kind"] == MetricsKind.SYSTEM:
                self._loads[key] = each.record["values"]
