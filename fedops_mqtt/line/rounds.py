"""Which round a message belongs to, in the three ways that Flower says it.

Message strategies put `server-round` into a config record, classic ones use the group id; nobody has to say it at all.
"""

from typing import TypeGuard

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

ROUND_KEY = "server-round"
"""Set by every strategy of flwr.serverapp (Flower 1.41 FedAvg.configure_train)."""


def round_of(message: Message) -> int | None:
    """Return the round, or None where the message does not say."""
    group_id = message.metadata.group_id
    if group_id.isascii() and group_id.isdigit():
        return int(group_id)
    if not message.has_content():
        return None
    for record in message.content.values():  # not `.config_records`: its view is a reference cycle around the arrays
        if isinstance(record, ConfigRecord) and isinstance(value := record.get(ROUND_KEY), int):
            return value
    return None


def metrics_of(content: RecordDict) -> dict[str, float]:
    """Return the single numbers that a reply measured, by name; a later record wins where names meet.

    Classic clients put theirs into config records (`fitres.metrics`), message apps into metric records.
    """
    metrics: dict[str, float] = {}
    for kind in (ConfigRecord, MetricRecord):
        for record in content.values():
            if isinstance(record, kind):
                metrics.update({name: float(value) for name, value in record.items() if _is_number(value)})
    return metrics


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
