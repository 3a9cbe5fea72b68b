"""What people measured is cut to what a message takes; whatever it is, nothing raises."""

import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedops_mqtt.protocol import (
    MAX_METRICS,
    ClientMetrics,
    MetricsCutter,
    MetricsKind,
    ServerMetrics,
    count_of,
    decode,
    encode,
    number_of,
    topics,
    utc_now,
)
from fedops_mqtt.training.pipe import MAX_LINE_BYTES, MetricsReport, parse_report, to_line

MAC = "02:00:00:00:00:01"
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)


class Hostile:
    def item(self) -> float:
        raise RuntimeError("no item")

    def __float__(self) -> float:
        raise RuntimeError("no float")


VALUES = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.none(), ANY_TEXT, st.binary(max_size=5), st.lists(st.integers()),
    st.sampled_from([10**400, -(10**400), 2**64, np.float32(1.5), np.int64(7), np.array([1.0]), np.array([1, 2]),
                     np.longdouble(2), np.complex128(1j), np.str_("x"), np.datetime64("2026-01-01"), Decimal("1.5"),
                     {}, Hostile(), math.nan, math.inf]),
)  # fmt: skip
METRICS = st.dictionaries(st.one_of(ANY_TEXT, st.integers()), VALUES, max_size=30)


def client_metrics(values: Any) -> ClientMetrics:
    return ClientMetrics(
        kind=MetricsKind.ROUND, task_id="t", client_mac=MAC, instance="i", run_id="r", values=values, at=utc_now()
    )


def server_metrics(metrics: Any) -> ServerMetrics:
    return ServerMetrics(task_id="t", run_id="r", round=1, metrics=metrics, at=utc_now())


@given(METRICS)
def test_any_metric_of_a_client_or_server_is_published(values: dict[Any, Any]) -> None:
    warnings: list[str] = []
    cutter = MetricsCutter(warnings.append)
    report = MetricsReport(kind=MetricsKind.ROUND, values=cutter.cut(values))
    assert parse_report(to_line(report)) == report
    told = decode(topics.client_metrics("t", MAC), encode(client_metrics(report.values)))
    assert isinstance(told, ClientMetrics)
    assert told.values.items() >= {name: value for name, value in report.values.items() if value is not None}.items()
    encode(server_metrics(cutter.cut_numbers(values)))
    assert len(warnings) <= 1


@pytest.mark.parametrize("num_more", [0, 8])
def test_more_names_than_a_message_takes_are_cut_with_one_warning_that_names_the_limit(num_more: int) -> None:
    warnings: list[str] = []
    cutter = MetricsCutter(warnings.append)
    for _ in range(3):
        kept = cutter.cut({f"m{number}": float(number) for number in range(300)}, num_more=num_more)
        assert list(kept) == [f"m{number}" for number in range(MAX_METRICS - num_more)]
    assert len(warnings) == 1
    assert str(MAX_METRICS - num_more) in warnings[0]
    assert "300" in warnings[0]


def test_a_name_that_is_too_long_is_cut_and_stays_one_of_its_own() -> None:
    warnings: list[str] = []
    kept = MetricsCutter(warnings.append).cut({"x" * 300 + end: 1.0 for end in "ab"})
    assert [len(name) for name in kept] == [256, 256]
    assert "256" in warnings[0]


def test_names_and_texts_that_fill_a_message_are_cut_to_its_bytes() -> None:
    warnings: list[str] = []
    values = {f"{number}" + "\x01" * 200: "\x01" * 4096 for number in range(MAX_METRICS)}
    kept = MetricsCutter(warnings.append).cut(values)
    assert kept
    assert len(encode(client_metrics(kept))) < 64 * 1024
    assert len(to_line(MetricsReport(kind=MetricsKind.ROUND, values=kept))) < MAX_LINE_BYTES
    assert "bytes" in warnings[0]


def test_what_fits_is_not_warned_of() -> None:
    warnings: list[str] = []
    values = {"loss": 0.5, "n": 3, "flag": True, "note": "x", "nothing": None}
    assert MetricsCutter(warnings.append).cut(values) == values
    assert warnings == []


def test_one_number_in_any_form_is_that_number() -> None:
    for value in (1.5, np.float64(1.5), np.float32(1.5), np.array([[1.5]]), np.longdouble(1.5), Decimal("1.5")):
        assert number_of(value) == 1.5
        assert type(number_of(value)) is float
    assert number_of(np.int64(3)) == 3
    assert number_of(np.bool_(True)) is True
    assert number_of(10**400) == math.inf
    assert number_of(-(10**400)) == -math.inf
    assert number_of(2**64) == float(2**64)
    for value in ("1", b"1", [1], None, np.array([1, 2]), 1j, {}, Hostile()):
        assert number_of(value) is None


def test_a_count_is_a_whole_number_of_63_bits_or_the_default() -> None:
    assert [count_of(value) for value in (3, np.int64(3), 2**63 - 1, 4.0)] == [3, 3, 2**63 - 1, 4]
    for value in (-1, True, 2**63, 10**400, 1.5, "3", None, math.nan, math.inf, [1]):
        assert count_of(value, 7) == 7


@pytest.mark.parametrize("name", ["compute_s", "cpu", "memory", "network_sent", "seconds"])
def test_a_text_in_place_of_a_number_is_refused_on_receipt_and_not_sent(name: str) -> None:
    with pytest.raises(ValidationError):
        client_metrics({name: "a lot"})
    warnings: list[str] = []
    assert MetricsCutter(warnings.append).cut({name: "a lot", "loss": 1.0}) == {"loss": 1.0}
    assert name in warnings[0]
    assert client_metrics({name: None, "note": "text"}).values == {name: None, "note": "text"}


def test_a_time_that_is_not_finite_is_null() -> None:
    said = ServerMetrics(task_id="t", run_id="r", round=1, duration_s=math.nan, at=utc_now())
    assert json.loads(encode(said)).get("duration_s") is None
