"""Which round a message belongs to, in the three ways that Flower encodes it, and what it asks for.

Message strategies put `server-round` into a config record, classic ones use the group id; a message need not name one.
"""

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedops_mqtt.protocol import count_of, number_of

ROUND_KEY = "server-round"
"""Set by every strategy of flwr.serverapp (Flower 1.41 FedAvg.configure_train)."""

_MAX_DIGITS = 18
"""Of a round: a count has 63 bits."""


def round_of(message: Message) -> int | None:
    """Return the round, or None where the message names none that is a count."""
    group_id = message.metadata.group_id
    if group_id.isascii() and group_id.isdigit() and len(group_id) <= _MAX_DIGITS:
        return int(group_id)
    if not message.has_content():
        return None
    for record in message.content.values():  # not `.config_records`: its view is a reference cycle around the arrays
        if isinstance(record, ConfigRecord) and (round_ := count_of(record.get(ROUND_KEY), -1)) >= 0:
            return round_
    return None


def kind_of(message: Message) -> str:
    """Return `train`, `evaluate` or `query`; a message of an action of its own (`train.mine`) is of that kind."""
    return message.metadata.message_type.partition(".")[0]


def metrics_of(content: RecordDict) -> dict[str, float]:
    """Return the single numbers that a reply measured, by name; a later record wins where names meet.

    Classic clients put theirs into config records (`fitres.metrics`), message apps into metric records.
    """
    metrics: dict[str, float] = {}
    for kind in (ConfigRecord, MetricRecord):
        for record in content.values():
            if isinstance(record, kind):
                numbers = ((name, number_of(value)) for name, value in record.items() if not isinstance(value, bool))
                metrics.update({name: float(value) for name, value in numbers if value is not None})
    return metrics
