"""FedOps' performance reports as numbers on the bus; their field names are kept."""

import json
from collections.abc import Mapping
from typing import Any

from fedops_mqtt.protocol import MetricsCutter, MetricsKind, count_of
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


def client_report(kind: MetricsKind, fields: Mapping[str, Any], cutter: MetricsCutter) -> MetricsReport:
    """Return a client's report as its daemon sends it; what is nested becomes JSON text."""
    plain = {
        name: json.dumps(value) if isinstance(value, list | dict) else value
        for name, value in fields.items()
        if name not in _ENVELOPE
    }
    return MetricsReport(kind=kind, round=count_of(fields.get("round")), values=cutter.cut(plain))


def server_numbers(fields: Mapping[str, Any], cutter: MetricsCutter) -> dict[str, float]:
    """Return the numbers of a server's evaluation, FedOps' own bookkeeping left out."""
    left_out = {*_ENVELOPE, "run_time_by_round"}
    return cutter.cut_numbers(
        {name: value for name, value in fields.items() if name not in left_out and not isinstance(value, bool)}
    )
