"""Messages to bytes and back: `decode(topic, encode(m)) == m`, and any bytes give a message or a `ProtocolError`."""

from typing import Any

import orjson
from pydantic import ValidationError

from fedops_mqtt.protocol.identity import MalformedMessageError, MismatchedMessageError, PayloadTooLargeError
from fedops_mqtt.protocol.messages import (
    ClientCondition,
    ClientMetrics,
    ClientStatus,
    ManagerCondition,
    ManagerStatus,
    Message,
    OwnedStatus,
    RunStatus,
    ServerCondition,
    ServerMetrics,
    ServerStatus,
    StartTrigger,
    StopTrigger,
)
from fedops_mqtt.protocol.topics import Channel, Topic
from fedops_mqtt.protocol.values import LAST_SEQ, MAX_BRACKETS

MESSAGE_OF_CHANNEL: dict[Channel, type[Message]] = {
    Channel.CLIENT_STATUS: ClientStatus,
    Channel.CLIENT_START: StartTrigger,
    Channel.CLIENT_STOP: StopTrigger,
    Channel.CLIENT_METRICS: ClientMetrics,
    Channel.SERVER_STATUS: ServerStatus,
    Channel.SERVER_METRICS: ServerMetrics,
    Channel.RUN_STATUS: RunStatus,
    Channel.MANAGER_STATUS: ManagerStatus,
}

_OUT = frozenset({ClientCondition.CLIENT_OUT, ServerCondition.SERVER_OUT, ManagerCondition.MANAGER_OUT})

_CHANNEL_OF_MESSAGE = {model: channel for channel, model in MESSAGE_OF_CHANNEL.items()}


def encode(message: Message) -> bytes:
    """Return a message as the JSON object that goes on the bus, absent facts left out.

    Raises:
        PayloadTooLargeError: it would be over its channel's `max_payload_bytes`.
    """
    fields = message.model_dump(mode="json", exclude_none=True)
    if fields.get("seq") == LAST_SEQ:
        del fields["seq"]
    payload = orjson.dumps(fields)
    _check_size(payload, _CHANNEL_OF_MESSAGE[type(message)])
    return payload


def decode(topic: Topic, payload: bytes) -> Message:
    """Return the message that a payload on `topic` is; unknown fields are ignored, everything else is checked.

    Raises:
        PayloadTooLargeError: the payload is over the channel's `max_payload_bytes`.
        MalformedMessageError: it is not JSON, or not the message of that topic.
        MismatchedMessageError: it names another task, client or run than the topic.
    """
    _check_size(payload, topic.channel)
    if payload.count(b"{") + payload.count(b"[") > MAX_BRACKETS:
        raise MalformedMessageError(str(topic), f"more than {MAX_BRACKETS} brackets")
    try:
        message = MESSAGE_OF_CHANNEL[topic.channel].model_validate(orjson.loads(payload), extra="ignore")
    except orjson.JSONDecodeError as error:
        raise MalformedMessageError(str(topic), f"not JSON ({error})") from error
    except ValidationError as error:
        raise MalformedMessageError(str(topic), first_problem(error)) from error
    for field in ("task_id", "client_mac", "run_id"):
        in_topic: str | None = getattr(topic, field)
        if in_topic is None:
            continue  # a field that a model has not is dear to ask for: as much as half of the decoding
        in_payload: Any = getattr(message, field, None)
        if in_payload != in_topic:
            raise MismatchedMessageError(str(topic), field, in_topic, str(in_payload))
    if isinstance(message, OwnedStatus) and message.seq == LAST_SEQ and getattr(message, "status", None) not in _OUT:
        raise MalformedMessageError(str(topic), "seq: only a last will leaves it out, or has one of 2^53 - 1 or more")
    return message


def _check_size(payload: bytes, channel: Channel) -> None:
    if len(payload) > channel.max_payload_bytes:
        raise PayloadTooLargeError(len(payload), channel.max_payload_bytes)


def first_problem(error: ValidationError, whole: str = "payload") -> str:
    """Return the first problem as `field: what is wrong`, `whole` for no field; without values: one may be a token."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or whole
    more = error.error_count() - 1
    return f"{where}: {first['msg']}" + (f" (and {more} more)" if more else "")
