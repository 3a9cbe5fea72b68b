"""FedOps' performance reports as numbers on the bus; their field names are kept."""

import json
from collections.abc import Mapping
from typing import Any, TypeGuard

from fedops_mqtt.protocol import MetricsKind
from fedops_mqtt.training.pipe import MetricsReport

CLIENT_KINDS = {
    "train_result": MetricsKind.TRAIN_RESULT,
    "test_result": MetricsKind.TEST_RESULT,
    "client_time_result": MetricsKind.TIME_RESULT,
    "client_system": MetricsKind.SYSTEM,
    "xai_result": MetricsKind.DATA,
}
"""What a FedOps client puts to `client_perf/KIND/TASK` (FedOps client_api.ClientServerAPI), and what it is here."""

_ENVELOPE = ("fl_task_id", "client_mac", "round", "gl_model_v")
"""Said by the message around the numbers already."""
_MAX_TEXT = 1024
_MAX_VALUES = 200


class ReportError(ValueError):
    """A performance report is no JSON object."""


def parse_report(body: bytes) -> dict[str, Any]:
    """Return the fields of a report.

    Raises:
        ReportError: it has none.
    """
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise ReportError(f"no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ReportError(f"expected a JSON object, got {type(fields).__name__}")
    return fields


def client_report(kind: MetricsKind, fields: Mapping[str, Any]) -> MetricsReport:
    """Return a client's report as its daemon sends it; what is nested becomes JSON text."""
    plain = {name: _plain(value) for name, value in fields.items() if name not in _ENVELOPE}
    return MetricsReport(kind=kind, round=count_in(fields, "round"), values=dict(list(plain.items())[:_MAX_VALUES]))


def server_numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a server's evaluation, FedOps' own bookkeeping left out."""
    left_out = {*_ENVELOPE, "run_time_by_round"}
    numbers = {name: value for name, value in fields.items() if name not in left_out and is_number(value)}
    return dict(list(numbers.items())[:_MAX_VALUES])


def count_in(fields: Mapping[str, Any], name: str) -> int:
    """Return a whole number of zero or more; 0 where there is none."""
    value = fields.get(name)
    return max(0, int(value)) if is_number(value) and abs(value) < _MAX_COUNT else 0


_MAX_COUNT = 2.0**53
"""Beyond it, and for NaN and infinity, a JSON number is no count."""


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> bool | int | float | str | None:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:_MAX_TEXT]
