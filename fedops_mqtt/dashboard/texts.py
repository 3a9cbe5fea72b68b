"""The texts and rows of the page, made of the API's records; pure, and tested without a page.

Online, Training and Offline are FedOps' own terms; the reason of an absence stands beside them.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from fedops_mqtt.core.fleet import Presence
from fedops_mqtt.manager.api.models import ClientRecord, RunFacts
from fedops_mqtt.protocol import first_line, number_of, visible

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
