import gc
import weakref

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.rounds import metrics_of, round_of


@pytest.fixture(autouse=True)
def _identity() -> None:
    flwr_private.set_identity(run_id=5, node_id=1)


def test_a_round_is_read_from_the_group_or_the_config() -> None:
    config = RecordDict({"config": ConfigRecord({"server-round": 4})})
    assert round_of(Message(RecordDict(), 7, "train", group_id="12")) == 12
    assert round_of(Message(config, 7, "train")) == 4
    assert round_of(Message(RecordDict(), 7, "train", group_id="warm up")) is None


@pytest.mark.parametrize("group_id", ["9" * 30, "9" * 5000])
def test_a_round_beyond_a_count_is_none(group_id: str) -> None:
    assert round_of(Message(RecordDict(), 7, "train", group_id=group_id)) is None


@pytest.mark.parametrize("value", [-1, 2**70, 1.5, "2"])
def test_a_round_in_the_config_that_is_no_count_is_none(value: int | float | str) -> None:
    config = RecordDict({"config": ConfigRecord({"server-round": value})})
    assert round_of(Message(config, 7, "train")) is None


def test_a_number_beyond_every_float_is_reported_as_infinite() -> None:
    content = RecordDict({"config": ConfigRecord({"huge": 10**400})})
    assert metrics_of(content) == {"huge": float("inf")}


def test_metrics_are_the_single_numbers_of_a_reply() -> None:
    content = RecordDict(
        {
            "config": ConfigRecord({"lr": 0.5, "name": "x", "flag": True}),
            "metrics": MetricRecord({"loss": 1.5, "n": 3, "all": [1, 2]}),
        }
    )
    assert metrics_of(content) == {"lr": 0.5, "loss": 1.5, "n": 3.0}


def test_looking_at_a_message_leaves_no_cycle_around_its_arrays() -> None:
    content = RecordDict({"config": ConfigRecord({"server-round": 4}), "metrics": MetricRecord({"x": 1})})
    alive = weakref.ref(content)
    gc.disable()
    try:
        round_of(Message(content, 7, "train"))
        metrics_of(content)
        del content
        assert alive() is None
    finally:
        gc.enable()
