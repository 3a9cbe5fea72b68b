"""What the fields of messages are made of: numbers, tables, times; each is checked where it comes in."""

import math
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from fedops_mqtt.protocol.identity import Reason, Text
from fedops_mqtt.protocol.measured import MAX_COUNT, MAX_METRICS

MAX_MEMBERS = 20_000
"""Clients of one run that a message lists."""

MAX_BRACKETS = 10 * MAX_MEMBERS
"""Objects and lists, counted where they open, of the largest roster whose reasons have some too. Without this bound
4 MiB of `[]` take a second to be made into lists."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]

LAST_SEQ = 2**53 - 1
"""The `seq` of a last will, above every other of its connection: the largest integer that a double holds exactly.

On the wire a will leaves `seq` out. What is larger counts as this one: wills had 2^63 - 1 once, and who computes in
doubles made 2^63 of it.
"""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, AfterValidator(_finite)]
"""A measured number; JSON has no NaN or infinity, so a diverged loss is null."""
Scalar = Annotated[bool | int | float | Reason | None, AfterValidator(_finite)]


_PART = 256
"""Entries of a table that are validated at a time."""


def bounded(max_length: int) -> WrapValidator:
    """A table of at most so many entries, validated in parts up to the first bad one.

    pydantic collects every error before it counts the entries: 4 MiB of wrong ones took 9 s.
    """

    def validate(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, dict) or len(value) <= _PART:
            return inner(value)
        if len(value) > max_length:
            raise ValueError(f"at most {max_length} entries, here are {len(value)}")
        entries = iter(value.items())
        valid: dict[Any, Any] = {}
        while part := dict(islice(entries, _PART)):
            valid |= inner(part)
        return valid

    return WrapValidator(validate)


Scalars = Annotated[dict[Text, Scalar], Field(max_length=MAX_METRICS), bounded(MAX_METRICS)]
Metrics = Annotated[dict[Text, Number], Field(max_length=MAX_METRICS), bounded(MAX_METRICS)]


def _expressible(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("JSON has no NaN or infinity")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("the integer needs more than 64 bits")  # else it would become a float on the way
    return value


Config = Annotated[
    dict[Text, Annotated[bool | int | float | Reason, BeforeValidator(_expressible)]],
    Field(max_length=MAX_METRICS),
    bounded(MAX_METRICS),
]
"""Settings of an app by key, of the types that Flower's run configuration has; integers have 64 bits there."""
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in lower case."""
Address = Annotated[str, StringConstraints(max_length=300, pattern=r"^\S+:\d{1,5}$")]
"""`host:port`; an IPv6 host stands in brackets."""


def _to_utc_ms(at: datetime) -> datetime:
    try:
        utc = at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("time is outside the calendar in UTC") from error
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[
    AwareDatetime, AfterValidator(_to_utc_ms), PlainSerializer(_iso, return_type=str, when_used="json")
]
"""A sender's clock, ISO 8601 in UTC: shown, never trusted (readers use their own receipt time)."""


def utc_now() -> datetime:
    """Return this machine's clock as a timezone-aware UTC time, to the millisecond that the wire carries."""
    return _to_utc_ms(datetime.now(UTC))


def _at_most_last(seq: Any) -> Any:
    return LAST_SEQ if isinstance(seq, int | float) and seq > LAST_SEQ else seq


Seq = Annotated[int, Field(ge=0), BeforeValidator(_at_most_last)]
"""Number of a word within its epoch."""
