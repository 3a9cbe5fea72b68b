"""What people measured, cut to what a metrics message takes: a number is never the reason that a training ends.

Values are foreign objects (numpy scalars, tensors, anything): nothing here raises, whatever they do.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from fedops_mqtt.protocol.identity import MAX_REASON_CHARS, MAX_TEXT_CHARS
from fedops_mqtt.protocol.text import clip

MAX_METRICS = 256
"""Names in one message."""
MAX_METRICS_BYTES = 48 * 1024
"""Of names and texts as JSON; with the numbers and the rest of the message it stays below 64 KiB."""
MAX_COUNT = 2**63 - 1

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
