"""Messages to bytes and back: nothing is lost, nothing foreign gets in, and bad input is our error or a message."""

import contextlib
from datetime import UTC, datetime
from enum import EnumType
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fedops_mqtt.core.fleet import is_will
from fedops_mqtt.protocol import (
    LAST_SEQ,
    MEASURED,
    MESSAGE_OF_CHANNEL,
    Channel,
    ClientMetrics,
    ClientStatus,
    MalformedMessageError,
    MemberCondition,
    Message,
    MismatchedMessageError,
    PayloadTooLargeError,
    ProtocolError,
    ReasonCode,
    RunMember,
    ServerClient,
    ServerStatus,
    StartTrigger,
    Topic,
    decode,
    encode,
    topics,
    utc_now,
)

MAC = "02:00:00:00:00:01"
TASK, RUN = "digits", "run-1"
texts = st.text(max_size=40)
counts = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 2**41)
numbers = st.floats(allow_nan=False, allow_infinity=False)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
times = st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC))
HOSTS = st.sampled_from(["127.0.0.1", "[::1]", "[fe80::1%eth0]", "fl.example.org", "fl_1.", "сервер.рф", "x" * 63])
addresses = st.builds("{}:{}".format, HOSTS, st.integers(1, 65535))

ALWAYS = {
    "task_id": st.just(TASK),
    "run_id": st.just(RUN),
    "client_mac": st.just(MAC),
    "at": times,
    "epoch": epochs,
    "seq": st.integers(0, LAST_SEQ - 1),
    "server_ip": addresses,
    "created_at": times,
}
MAYBE = {
    "ended_at": times,
    "heartbeat_s": st.floats(0.001, 86_400),
    "duration_s": numbers,
    "metrics": st.dictionaries(texts, st.none() | numbers, max_size=5),
    "values": st.dictionaries(texts, st.none() | numbers | st.integers(-(2**63), 2**63) | st.booleans() | texts).filter(
        lambda values: not any(isinstance(values.get(name), str) for name in MEASURED)
    ),
    "digest": st.binary(min_size=32, max_size=32).map(bytes.hex),
    "run_config": st.none()
    | st.dictionaries(texts, numbers | st.integers(-(2**63), 2**63 - 1) | st.booleans() | texts, max_size=5),
    "agent": st.dictionaries(texts, texts, max_size=5),
    "clients_by_status": st.dictionaries(st.sampled_from(MemberCondition), counts),
}


def strategy_of(name: str, annotation: Any) -> st.SearchStrategy[Any]:
    if name in ALWAYS:
        return ALWAYS[name]
    if name in MAYBE:
        return MAYBE[name]
    if get_origin(annotation) in (Union, UnionType):
        return st.none() | strategy_of(name, next(part for part in get_args(annotation) if part is not NoneType))
    if get_origin(annotation) is not None and hasattr(annotation, "__metadata__"):
        return strategy_of(name, get_args(annotation)[0])
    if name == "clients":
        return st.nothing()
    if isinstance(annotation, EnumType):
        return st.sampled_from(list(annotation))  # type: ignore[arg-type]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return builds(annotation)
    return {int: counts, str: texts}[annotation]


def builds(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    fields = {name: strategy_of(name, field.annotation) for name, field in model.model_fields.items()}
    if "clients" in model.model_fields:
        member = ServerClient if model is ServerStatus else RunMember
        fields["clients"] = st.dictionaries(macs, builds(member), max_size=3)
    return st.builds(model, **fields)


messages = st.one_of([builds(model) for model in MESSAGE_OF_CHANNEL.values()])
every_topic = [
    topics.client_status(TASK, MAC),
    topics.client_start(TASK, MAC),
    topics.client_stop(TASK, MAC),
    topics.client_metrics(TASK, MAC),
    topics.server_status(TASK),
    topics.server_metrics(TASK),
    topics.run_status(TASK, RUN),
    topics.manager_status(),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(2**63), 2**64 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


def topic_of(message: Message) -> Topic:
    channels = {model: channel for channel, model in MESSAGE_OF_CHANNEL.items()}
    return next(topic for topic in every_topic if topic.channel is channels[type(message)])


def status(**changes: object) -> ClientStatus:
    said = {"status": "online", "task_id": TASK, "client_mac": MAC, "instance": "a", "epoch": 1, "seq": 1}
    return ClientStatus.model_validate(said | {"at": utc_now()} | changes)


def start(**changes: object) -> StartTrigger:
    said = {"run_id": RUN, "attempt": 0, "launch": 0, "term": 0, "task_id": TASK, "client_mac": MAC}
    return StartTrigger.model_validate(said | {"server_ip": "127.0.0.1:9", "at": utc_now()} | changes)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 2**63, -(2**63) - 1, None, [], {}, "x" * 4097],
    ids=lambda value: str(value)[:9],
)
def test_a_setting_of_a_run_that_a_message_cannot_carry_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        start(run_config={"lr": value})


@pytest.mark.parametrize(
    "address",
    ["fl..example.org:9000", ".:9", f"{'x' * 64}:9", f"{'п' * 60}.рф:9", "h:٣", "h:0", "h:99999", "h:", ":9", "a b:9",
     "http://h:9", "h\0:9", "::1:9", "[::1:9", "[]:9", "u@h:9"],
)  # fmt: skip
def test_an_address_that_no_socket_can_connect_to_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="server_ip"):
        start(server_ip=address)


def test_the_settings_of_a_run_keep_their_types() -> None:
    config = {"lr": 1.0, "epochs": 2, "fast": True, "name": "3"}
    sent = decode(topics.client_start(TASK, MAC), encode(start(run_config=config)))
    assert isinstance(sent, StartTrigger)
    assert {key: type(value) for key, value in (sent.run_config or {}).items()} == {
        key: type(value) for key, value in config.items()
    }


def test_every_channel_is_drawn() -> None:
    assert {topic.channel for topic in every_topic} == set(Channel)


@given(messages)
def test_decode_of_encode_is_the_message(message: Message) -> None:
    assert decode(topic_of(message), encode(message)) == message


@given(messages, st.dictionaries(st.text(min_size=1).map("x-{}".format), json_values, max_size=3))
def test_unknown_fields_of_a_newer_speaker_are_ignored(message: Message, unknown: dict[str, object]) -> None:
    said = orjson.loads(encode(message))
    assert decode(topic_of(message), orjson.dumps(unknown | said)) == message


@pytest.mark.parametrize(("code", "known"), [("interrupted", ReasonCode.INTERRUPTED), ("of-a-newer-program", None)])
def test_a_reason_code_of_a_newer_program_counts_as_absent_and_spoils_no_message(
    code: str, known: ReasonCode | None
) -> None:
    last_run = {"run_id": RUN, "attempt": 1, "outcome": "failed", "reason": "why", "reason_code": code}
    last_trigger = {"run_id": RUN, "attempt": 1, "launch": 1, "answer": "rejected", "reason_code": code}
    payload = orjson.loads(encode(status())) | {"last_run": last_run, "last_trigger": last_trigger}
    read = decode(topics.client_status(TASK, MAC), orjson.dumps(payload))
    assert isinstance(read, ClientStatus)
    assert read.last_run is not None
    assert read.last_trigger is not None
    assert (read.last_run.reason_code, read.last_trigger.reason_code, read.last_run.reason) == (known, known, "why")
    assert decode(topics.client_status(TASK, MAC), encode(read)) == read


@given(st.sampled_from(every_topic), st.binary(max_size=200))
def test_any_bytes_give_a_message_or_our_error(topic: Topic, payload: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(topic, payload), BaseModel)


@given(st.sampled_from(every_topic), json_values)
def test_any_json_gives_a_message_or_our_error(topic: Topic, value: object) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(topic, orjson.dumps(value)), BaseModel)


@given(messages, st.data())
def test_a_message_with_one_field_spoiled_gives_a_message_or_our_error(message: Message, data: st.DataObject) -> None:
    said = orjson.loads(encode(message))
    said[data.draw(st.sampled_from(sorted(said)))] = data.draw(json_values)
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(topic_of(message), orjson.dumps(said)), type(message))


@pytest.mark.parametrize("model", MESSAGE_OF_CHANNEL.values())
def test_we_send_no_unknown_fields(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="surprise"):
        model.model_validate({"surprise": 1})


@pytest.mark.parametrize("model", MESSAGE_OF_CHANNEL.values())
def test_messages_are_frozen(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"] is True


def test_a_payload_over_the_limit_is_not_even_parsed() -> None:
    with pytest.raises(PayloadTooLargeError) as caught:
        decode(topics.client_status(TASK, MAC), b"{" * (64 * 1024 + 1))
    assert caught.value.size_bytes == 64 * 1024 + 1


def test_a_message_over_the_limit_is_not_sent() -> None:
    values = {f"{n:0256}": 1 for n in range(256)}
    big = ClientMetrics(kind="data", task_id=TASK, client_mac=MAC, instance="a", values=values, at=utc_now())
    with pytest.raises(PayloadTooLargeError):
        encode(big)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [(b"", "not JSON"), (b"[]", "payload"), (b"\xff\xfe", "not JSON"), (b'{"status": "asleep"}', "status")],
)
def test_the_error_names_what_is_wrong(payload: bytes, problem: str) -> None:
    with pytest.raises(MalformedMessageError, match=problem):
        decode(topics.client_status(TASK, MAC), payload)


def test_a_message_about_another_identity_is_refused() -> None:
    other = status(client_mac="02:00:00:00:00:02")
    with pytest.raises(MismatchedMessageError) as caught:
        decode(topics.client_status(TASK, MAC), encode(other))
    assert (caught.value.field, caught.value.in_payload) == ("client_mac", "02:00:00:00:00:02")


def test_a_diverged_loss_is_null() -> None:
    topic = topics.server_metrics(TASK)
    payload = {"task_id": TASK, "run_id": RUN, "round": 1, "metrics": {"loss": 1}, "at": "2026-01-01T00:00:00Z"}
    message = MESSAGE_OF_CHANNEL[Channel.SERVER_METRICS].model_validate(payload | {"metrics": {"loss": float("nan")}})
    assert b'"loss":null' in encode(message)
    assert decode(topic, encode(message)).metrics == {"loss": None}  # type: ignore[union-attr]


def test_an_error_never_shows_a_token() -> None:
    payload = orjson.dumps({"token": ["secret-token"], "run_id": RUN})
    with pytest.raises(MalformedMessageError) as caught:
        decode(topics.client_start(TASK, MAC), payload)
    assert "secret-token" not in str(caught.value)


def _filled_up(topic: Topic, field: str, value: Any) -> bytes:
    """As many entries as the channel's limit holds, each of them wrong."""
    count = topic.channel.max_payload_bytes // (len(orjson.dumps(value)) + 11)
    return orjson.dumps({field: {f"{number:x}": value for number in range(count)}})


@pytest.mark.parametrize("value", [{}, *(pytest.param(each, marks=pytest.mark.long) for each in ([], "x", None, 1))])
@pytest.mark.parametrize(
    ("topic", "field"),
    [
        (topics.client_metrics(TASK, MAC), "values"),
        (topics.server_status(TASK), "agent"),
        (topics.server_status(TASK), "clients"),
        (topics.server_status(TASK), "metrics"),
        (topics.run_status(TASK, RUN), "clients"),
    ],
)
def test_only_a_part_of_a_table_full_of_errors_is_checked(topic: Topic, field: str, value: object) -> None:
    with pytest.raises(MalformedMessageError) as caught:
        decode(topic, _filled_up(topic, field, value))
    cause = caught.value.__cause__
    assert cause is None or (isinstance(cause, ValidationError) and cause.error_count() < 2_000)


def test_a_roster_of_20000_wrong_members_is_refused_at_its_first_ones() -> None:
    members = {f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}": {"status": 7} for number in range(20_000)}
    with pytest.raises(MalformedMessageError) as caught:
        decode(topics.server_status(TASK), orjson.dumps({"clients": members}))
    cause = caught.value.__cause__
    assert isinstance(cause, ValidationError)
    assert cause.error_count() < 2_000


def test_a_roster_of_20000_members_is_read_and_one_more_is_not() -> None:
    member = {"status": "failed", "reason": "[Errno 28] {'a': 1}: no space left on device", "attempt": 3}
    said: dict[str, Any] = {"instance": "i", "epoch": 1, "seq": 1, "at": "2026-01-01T00:00:00Z", "status": "running"}
    said |= {"task_id": TASK, "run_id": RUN}
    said["clients"] = {f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}": member for number in range(20_000)}
    read = decode(topics.server_status(TASK), orjson.dumps(said))
    assert isinstance(read, ServerStatus)
    assert len(read.clients) == 20_000
    said["clients"]["03:00:00:00:00:00"] = member
    with pytest.raises(MalformedMessageError, match="20000"):
        decode(topics.server_status(TASK), orjson.dumps(said))


def test_a_payload_of_empty_lists_is_not_even_parsed() -> None:
    with pytest.raises(MalformedMessageError, match="brackets"):
        decode(topics.server_status(TASK), b"[" + b"[]," * 1_000_000 + b"0]")


def test_a_last_will_leaves_seq_out_since_no_double_holds_what_64_bits_do() -> None:
    will = status(status="client-out", reason="lost", seq=LAST_SEQ)
    said = orjson.loads(encode(will))
    assert "seq" not in said
    assert decode(topics.client_status(TASK, MAC), orjson.dumps(said)) == will
    assert int(float(LAST_SEQ)) == LAST_SEQ


@pytest.mark.parametrize("seq", [2**53 - 1, 2**63 - 1, 2**63, float(2**63), 9223372036854776000, 1e19])
def test_a_last_will_of_before_and_what_a_double_makes_of_it_is_still_one(seq: float) -> None:
    said = orjson.loads(encode(status(status="client-out"))) | {"seq": seq}
    read = decode(topics.client_status(TASK, MAC), orjson.dumps(said))
    assert isinstance(read, ClientStatus)
    assert is_will(read)


@pytest.mark.parametrize("seq", [None, "absent", 2**53 - 1, 2**63 - 1, -1, 1.5])
def test_only_a_last_will_has_no_seq_or_the_last_one(seq: object) -> None:
    said = orjson.loads(encode(status())) | {"seq": seq}
    if seq == "absent":
        del said["seq"]
    with pytest.raises(MalformedMessageError, match="seq"):
        decode(topics.client_status(TASK, MAC), orjson.dumps(said))
