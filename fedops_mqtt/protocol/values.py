"""What the fields of messages are made of: numbers, tables, times; each is checked where it comes in."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

import orjson
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

from fedops_mqtt.protocol.identity import MAX_REASON_CHARS, MAX_TEXT_CHARS, Reason, Text
from fedops_mqtt.protocol.text import clip

MAX_METRICS = 256
"""Names in one message."""
MAX_METRICS_BYTES = 48 * 1024
"""Of names and texts as JSON; with the numbers and the rest of the message it stays below 64 KiB."""
MAX_COUNT = 2**63 - 1
MAX_LIMIT_S = 10 * 365 * 86_400.0
"""Longest time that a peer may name for a wait: every clock and socket takes a few times this."""

Plain = bool | int | float | str | None

MEASURED = frozenset(
    {"seconds", "wait_s", "download_s", "compute_s", "upload_s", "bytes_in", "bytes_out", "runtime", "cpu"}
    | {"cpu_threads", "memory", "memory_percent", "memory_rssMB", "memory_availableMB", "network_sent", "network_recv"}
    | {"disk"}
)
"""Values of `ClientMetrics` that readers calculate with: numbers or null, whatever the kind of the message."""


def number_of(value: object) -> bool | int | float | None:
    """Return the one number that a value is (numpy scalars and tensors of one element too); None when it is not one.

    An integer beyond 64 bits becomes a float, and one beyond a float becomes infinite.
    """
    if isinstance(value, bool | float):
        return value if isinstance(value, bool) else float(value)
    if isinstance(value, int):
        return int(value) if abs(value) <= MAX_COUNT else _as_float(value)
    if isinstance(value, str | bytes) or value is None:
        return None
    try:
        found = value.item() if hasattr(value, "item") else value
        if isinstance(found, bool | int | float):
            return number_of(found)
        return None if isinstance(found, str | bytes) else float(found)  # type: ignore[arg-type]
    except Exception:  # a user's object, with a user's code behind `item` and `__float__`
        return None


def numbers_in(values: Mapping[Any, object] | None, prefix: str = "") -> dict[str, float]:
    """Return what is one number each, by name with `prefix` before it; texts, lists and None are left out."""
    found = {f"{prefix}{name}": number_of(value) for name, value in (values or {}).items()}
    return {name: float(number) for name, number in found.items() if number is not None}


def count_of(value: object, default: int = 0) -> int:
    """Return a whole number from 0 to 2^63 - 1; `default` where a value is not one."""
    number = number_of(value)
    if number is None or isinstance(number, bool) or not 0 <= number <= MAX_COUNT or number != int(number):
        return default
    return int(number)


class MetricsCutter:
    """Cuts metrics to the limits of a message, and warns once, naming the limit; for one run."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._has_warned = False

    def cut(self, values: Mapping[Any, object], *, num_more: int = 0) -> dict[str, Plain]:
        """Return what fits beside `num_more` names that the caller adds; numbers, texts and None are taken."""
        problems: list[str] = []
        kept: dict[str, Plain] = {}
        left_bytes = MAX_METRICS_BYTES
        for given, value in values.items():
            if not isinstance(given, str):
                problems.append(f"a name of type {type(given).__name__} is left out: names are texts")
                continue
            name = clip(given, MAX_TEXT_CHARS)
            plain = _plain(name, value)
            if name != given:
                problems.append(f"the name {name[:40]!r}… is cut to {MAX_TEXT_CHARS} characters of valid Unicode")
            if plain is None and value is not None:
                problems.append(f"{name[:40]!r} is left out: a value of type {type(value).__name__} is no number")
                continue
            num_bytes = len(orjson.dumps([name, plain if isinstance(plain, str) else None]))
            if len(kept) >= MAX_METRICS - num_more or num_bytes > left_bytes:
                limit = f"{MAX_METRICS - num_more} names and {MAX_METRICS_BYTES} bytes of names and texts"
                problems.append(f"{len(values) - len(kept)} of {len(values)} are left out: a message takes {limit}")
                break
            left_bytes -= num_bytes
            kept[name] = plain
        if problems and not self._has_warned:
            self._has_warned = True
            self._warn(f"metrics are cut to what the bus takes: {problems[-1]}")
        return kept

    def cut_numbers(self, values: Mapping[str, object]) -> dict[str, float]:
        """Return the numbers that fit, as an FL server publishes them; texts and lists stay where they are."""
        numbers = {name: float(number) for name, value in values.items() if (number := number_of(value)) is not None}
        return {name: value for name, value in self.cut(numbers).items() if isinstance(value, float)}


def _plain(name: str, value: object) -> Plain:
    if isinstance(value, str) and name not in MEASURED:
        return clip(value, MAX_REASON_CHARS)
    return number_of(value)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


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
    """Check a value before its type is chosen, so that there is one problem and not one for each type."""
    if not isinstance(value, bool | int | float | str):
        raise ValueError("it is not a boolean, number or text")
    if isinstance(value, str) and len(value) > MAX_REASON_CHARS:
        raise ValueError(f"the text has {len(value):,} characters, at most {MAX_REASON_CHARS:,} are taken")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        raise ValueError("the text is not Unicode")  # half of a pair, which UTF-8 cannot carry
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
HOST = r"([^\s\x00-\x1f\x7f/@:\[\]]+|\[[0-9A-Fa-f:.]+(%[^\s\x00-\x1f\x7f/@:\[\]]+)?\])"
"""A host in an address, as a pattern; `has_usable_labels` checks what it cannot."""
MAX_PORT = 65535


def has_usable_labels(host: str) -> bool:
    """Return whether a name can be looked up: sockets raise an error that is no `OSError` for any other.

    Between its dots are 1 to 63 characters, of an internationalised name in its ASCII form (RFC 1034, 3.1).
    """
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def _usable(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not has_usable_labels(host):
        raise ValueError("between the dots of a host name are 1 to 63 characters")
    if not 0 < int(port) <= MAX_PORT:
        raise ValueError(f"a port is 1 to {MAX_PORT}")
    return address


Address = Annotated[str, StringConstraints(max_length=300, pattern=rf"^{HOST}:[0-9]{{1,5}}$"), AfterValidator(_usable)]
"""`host:port` that can be connected to; an IPv6 host stands in brackets."""


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
"""Number of a status within its epoch."""
