"""Which replies are updates of the model that was sent."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common import ndarrays_to_parameters
from flwr.common.typing import Code, FitIns, FitRes, Parameters, Status

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.flwr_private import legacy_records
from fedops_mqtt.line.reply_check import ReplyCheck, count_nonfinite, is_quick

FEDAVG = ReplyCheck(weight_key="num-examples", averaged=frozenset({"train", "evaluate"}))
CLASSIC = ReplyCheck(weight_key="num_examples")
OWN = ReplyCheck()
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _identity() -> None:
    flwr_private.set_identity(run_id=5, node_id=1)


def asked(kind: str = "train", **records: Any) -> Message:
    message = Message(RecordDict(records), dst_node_id=7, message_type=kind, group_id="1")
    message.metadata.__dict__["_message_id"] = "m-1"
    return message


def model(**arrays: Any) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def answer(sent: Message, *, weight: Any = 1, **records: Any) -> Message:
    return Message(RecordDict({**records, "metrics": MetricRecord({"num-examples": weight})}), reply_to=sent)


F2 = np.zeros(2, "f4")
SENT = {"w": F2, "n": np.int64(3)}


def problem(found: dict[str, Any] | ArrayRecord, check: ReplyCheck = FEDAVG, name: str = "arrays") -> str | None:
    sent = asked(arrays=model(**SENT))
    return check.problem(sent, answer(sent, **{name: found if isinstance(found, ArrayRecord) else model(**found)}))


@pytest.mark.parametrize("name", ["arrays", "model"])
def test_the_model_passes_whatever_its_record_is_called(name: str) -> None:
    assert problem(SENT, name=name) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"w": np.zeros((2, 1), "f4"), "n": np.int64(3)}, "(2, 1)"),
        ({"w": np.float32(0), "n": np.int64(3)}, "shape ()"),
        ({"w": np.zeros(0, "f4"), "n": np.int64(3)}, "(0,)"),
        ({"w": F2.astype("f8"), "n": np.int64(3)}, "float64"),
        ({"w": F2.astype("c8"), "n": np.int64(3)}, "complex64"),
        ({"w": np.array(["a", "b"]), "n": np.int64(3)}, "<U1"),
        ({"w": F2, "n": np.float32(3)}, "float32"),
        ({"w": F2}, "'n' is missing"),
        ({"w": F2, "n": np.int64(3), "x": F2}, "'x'"),
        ({"a": F2, "b": np.int64(3)}, "'w' is missing"),
        ({}, "0 arrays, the model has 2"),
    ],
)
def test_a_reply_with_another_model_is_refused_with_the_difference(found: dict[str, Any], said: str) -> None:
    assert said in (problem(found) or "")


@pytest.mark.parametrize(
    "array",
    [
        Array(dtype="float32", shape=(2,), stype="torch.tensor", data=b"12345678"),
        Array(dtype="", shape=(), stype="numpy.ndarray", data=b"no array"),
        Array(dtype="", shape=(), stype="numpy.ndarray", data=b""),
    ],
)
def test_what_no_strategy_could_read_is_refused(array: Array) -> None:
    assert "'w'" in (problem(ArrayRecord({"w": array, "n": Array(np.asarray(3))})) or "")


def test_a_long_name_is_shortened() -> None:
    assert len(problem({"w": F2, "n": np.int64(3), "x" * 100_000: F2}) or "") < 500


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (np.float64(3), np.int64(3)),  # averaging makes float64 of a counter; clients go on answering int64
        (np.zeros(2, "f8"), F2),  # noise and momenta make float64 of float32
        (F2, np.zeros(2, ">f4")),
        (F2, np.zeros(2, "f2")),
        (np.zeros((2, 3), "f4"), np.asfortranarray(np.ones((2, 3), "f4"))),
        (np.zeros(0, "u1"), np.ones(5, "u1")),  # a booster before and after its first trees
    ],
)
def test_what_the_models_dtype_holds_is_the_model(sent: Any, found: Any) -> None:
    question = asked(arrays=model(w=sent))
    assert FEDAVG.problem(question, answer(question, arrays=model(w=found))) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_unless_the_server_takes_it(value: float) -> None:
    found = {"w": np.array([1, value], "f4"), "n": np.int64(3)}
    assert "1 value" in (problem(found) or "")
    assert problem(found, ReplyCheck(nonfinite=True)) is None


def test_a_mask_of_infinities_is_part_of_the_model_and_nan_never_is() -> None:
    mask = np.array([0, -np.inf, np.nan], "f4")
    sent = asked(arrays=model(w=mask))
    assert "1 value" in (FEDAVG.problem(sent, answer(sent, arrays=model(w=mask))) or "")
    assert count_nonfinite(mask[:2], mask[:2]) == 0
    assert count_nonfinite(mask[:2]) == 1
    assert count_nonfinite(np.array([np.nan], "f2")) == 1
    assert count_nonfinite(np.array([1, 2])) == 0


def test_a_value_far_into_a_large_array_is_found() -> None:
    values = np.zeros((3, 1 << 20), "f4", order="F")
    values[2, -1] = np.nan
    assert count_nonfinite(values) == 1


@pytest.mark.parametrize(
    ("sent", "replied", "quick"),
    [
        ({"w": F2}, {"w": F2}, True),
        ({"w": F2}, {"w": np.zeros(4 * MIB, "i1")}, False),
        ({"w": np.zeros(4 * MIB, "i1")}, {"w": F2}, False),
        ({f"w{number}": F2 for number in range(300)}, {"w": F2}, False),
    ],
)
def test_an_event_loop_waits_for_the_check_of_little_only(sent: Any, replied: Any, quick: bool) -> None:
    question = asked(arrays=model(**sent))
    assert is_quick(question, answer(question, arrays=model(**replied))) is quick


def test_an_error_is_looked_at_at_once() -> None:
    question = asked(arrays=model(**SENT))
    assert is_quick(question, Message(Error(1, "no"), reply_to=question))


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1, -0.5, [1, 2]])
def test_a_weight_that_cannot_average_is_refused(weight: Any) -> None:
    sent = asked(arrays=model(**SENT))
    assert "num-examples" in (FEDAVG.problem(sent, answer(sent, weight=weight, arrays=model(**SENT))) or "")


def test_flowers_own_aggregation_wants_one_record_of_each_and_a_weight() -> None:
    sent = asked(arrays=model(**SENT))
    none = Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=sent)
    two = answer(sent, arrays=model(**SENT), more=model(x=F2))
    unweighted = Message(RecordDict({"arrays": model(**SENT), "metrics": MetricRecord({"loss": 1.0})}), reply_to=sent)
    unmeasured = Message(RecordDict({"arrays": model(**SENT)}), reply_to=sent)
    assert [bool(FEDAVG.problem(sent, each)) for each in (none, two, unweighted, unmeasured)] == [True] * 4
    assert OWN.problem(sent, none) is not None
    assert [OWN.problem(sent, each) for each in (two, unweighted, unmeasured)] == [None, None, None]


def test_records_of_one_name_are_compared_where_several_are_exchanged() -> None:
    sent = asked(arrays=model(w=F2), control=model(c=F2))
    good = answer(sent, arrays=model(w=F2), delta=model(d=np.zeros(9)))
    bad = answer(sent, arrays=model(w=F2), control=model(c=np.zeros(9, "f4")))
    assert OWN.problem(sent, good) is None
    assert "'c'" in (OWN.problem(sent, bad) or "")


def test_a_server_that_takes_any_shape_still_refuses_nan() -> None:
    check = ReplyCheck(any_shape=True)
    assert problem({"other": np.zeros(9)}, check) is None
    assert problem({"w": np.array([np.nan])}, check) is not None


def test_of_evaluation_the_weight_is_looked_at_and_of_other_messages_nothing() -> None:
    sent = asked("evaluate", arrays=model(**SENT))
    assert FEDAVG.problem(sent, answer(sent)) is None
    assert FEDAVG.problem(sent, answer(sent, weight=-1)) is not None
    assert FEDAVG.problem(sent, Message(RecordDict(), reply_to=sent)) is not None
    sent = asked("query", arrays=model(**SENT))
    assert FEDAVG.problem(sent, answer(sent, weight=-1)) is None


def test_an_error_is_the_strategys_own_business() -> None:
    sent = asked(arrays=model(**SENT))
    assert FEDAVG.problem(sent, Message(Error(1, "out of memory"), reply_to=sent)) is None


def test_of_replies_that_do_not_agree_the_odd_ones_are_named() -> None:
    sent = [asked(arrays=model(**SENT)) for _ in range(4)]
    for number, message in enumerate(sent):
        message.metadata.__dict__["_message_id"] = f"m-{number}"
    same = [answer(each, arrays=model(**SENT)) for each in sent[:2]]
    renamed = answer(sent[2], model=model(**SENT))
    metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
    talkative = Message(RecordDict({"arrays": model(**SENT), "metrics": metrics}), reply_to=sent[3])
    odd = FEDAVG.odd_ones(sent, [*same, renamed, talkative])
    assert odd.keys() == {"m-2", "m-3"}
    assert "'model' more, 'arrays' less" in odd["m-2"]
    assert "'metrics.loss' more" in odd["m-3"]
    assert FEDAVG.odd_ones(sent, same) == {}
    assert OWN.odd_ones(sent, [*same, renamed]) == {}
    assert FEDAVG.odd_ones(sent, [talkative, same[0]]).keys() == {"m-3"}, "of two, the first that was asked decides"


def classic(weights: Any, *, sent: Parameters | None = None, code: Code = Code.OK, num_examples: Any = 1) -> str | None:
    parameters = sent or ndarrays_to_parameters([F2])
    question = asked(**dict(legacy_records.fitins_to_recorddict(FitIns(parameters, {}), keep_input=True)))
    found = weights if isinstance(weights, Parameters) else ndarrays_to_parameters(weights)
    result = FitRes(Status(code, "why"), found, num_examples, {})
    return CLASSIC.problem(
        question, Message(legacy_records.fitres_to_recorddict(result, keep_input=True), reply_to=question)
    )


def test_classic_results_are_checked_in_the_same_way() -> None:
    assert classic([F2]) is None
    assert "(2, 1)" in (classic([F2.reshape(2, 1)]) or "")
    assert "2 arrays, the model has 1" in (classic([F2, F2]) or "")
    assert classic([]) is not None
    assert "num_examples" in (classic([F2], num_examples=-3) or "")
    assert classic([np.array([1, np.nan], "f4")]) is not None


def test_a_classic_client_that_reports_a_failure_is_the_strategys_failure() -> None:
    assert classic([], code=Code.FIT_NOT_IMPLEMENTED) is None


@pytest.mark.parametrize("sent", [Parameters(tensors=[], tensor_type=""), Parameters(tensors=[b"{}"], tensor_type="")])
def test_bytes_that_are_no_arrays_are_not_compared(sent: Parameters) -> None:
    assert classic(Parameters(tensors=[b"{...}"], tensor_type=""), sent=sent) is None


def test_a_reply_is_bounded_by_the_model_that_was_sent() -> None:
    sent = asked(arrays=model(w=np.zeros(10 * MIB, "u1")))
    assert 84 * MIB <= FEDAVG.limit_bytes(sent, 1 << 40) < 85 * MIB
    assert FEDAVG.limit_bytes(sent, MIB) == MIB
    assert ReplyCheck(any_shape=True).limit_bytes(sent, 1 << 40) == 1 << 40
    assert FEDAVG.limit_bytes(asked(config=ConfigRecord({"lr": 1.0})), 1 << 40) == 1 << 40
