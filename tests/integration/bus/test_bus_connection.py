"""The connection on a real mosquitto: it heals itself, says what is refused, and no bad message ends it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from bus_helpers import MAC, PATIENCE_S, QUICK, next_event, next_status, reader_of, say_raw, status
from ports import free_port

from fedops_mqtt.bus import (
    Cleared,
    ClientIdError,
    Connected,
    ConnectError,
    Connection,
    CredentialsError,
    Disconnected,
    Malformed,
    Mosquitto,
    NotConnectedError,
    PublishRefusedError,
    PublishTimeoutError,
    Received,
    connect,
    parse_broker_url,
)
from fedops_mqtt.bus.session import open_session
from fedops_mqtt.enrolment.authority import issue, make_authority
from fedops_mqtt.protocol import (
    ClientMetrics,
    MalformedMessageError,
    MismatchedMessageError,
    PayloadTooLargeError,
    TopicError,
    encode,
    topics,
    utc_now,
)

STATUSES = "fedops/v1/+/clients/+/status"


async def test_what_is_published_is_received_as_the_same_message(broker: Mosquitto, task_id: str) -> None:
    said = status(task_id)
    async with reader_of(broker, STATUSES) as reader:
        await reader.publish(topics.client_status(task_id, MAC), said)
        event = await next_event(reader, Received)
    assert (event.topic, event.message, event.is_retained) == (topics.client_status(task_id, MAC), said, False)


async def test_a_new_subscriber_reads_the_retained_status_as_retained(broker: Mosquitto, task_id: str) -> None:
    async with reader_of(broker) as writer:
        await writer.publish(topics.client_status(task_id, MAC), status(task_id))
    async with reader_of(broker, STATUSES) as reader:
        assert (await next_event(reader, Received)).is_retained


async def test_a_cleared_topic_is_an_event(broker: Mosquitto, task_id: str) -> None:
    topic = topics.client_status(task_id, MAC)
    async with reader_of(broker, STATUSES) as reader:
        await reader.publish(topic, status(task_id))
        await reader.publish(topic, None)
        assert (await next_event(reader, Cleared)).topic == topic


async def test_a_killed_broker_that_comes_back_finds_its_subscribers_again(broker: Mosquitto, task_id: str) -> None:
    async with reader_of(broker, STATUSES) as reader:
        await broker.kill()
        await next_event(reader, Disconnected)
        with pytest.raises(NotConnectedError):
            await reader.publish(topics.client_status(task_id, MAC), status(task_id))
        await broker.start()
        await next_event(reader, Connected)
        await reader.publish(topics.client_status(task_id, MAC), status(task_id))
        await next_status(reader, lambda said: said.task_id == task_id)


async def test_an_unacknowledged_publish_ends_with_the_connection(broker: Mosquitto, task_id: str) -> None:
    async with reader_of(broker) as writer, asyncio.TaskGroup() as group:
        broker.pause()
        publish = group.create_task(refusal_of(writer.publish(topics.client_status(task_id, MAC), status(task_id))))
        await asyncio.sleep(0)
        await broker.kill()
        assert isinstance(await publish, NotConnectedError)


async def test_a_broker_that_hangs_is_a_timeout(broker: Mosquitto, task_id: str) -> None:
    async with reader_of(broker, options=replace(QUICK, publish_timeout_s=0.2)) as writer:
        broker.pause()
        with pytest.raises(PublishTimeoutError, match=r"0\.2 s"):
            await writer.publish(topics.client_status(task_id, MAC), status(task_id))
        broker.resume()


class Attempts:
    """Counts CONNECTs: each asks for a will."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.are_enough = asyncio.Event()

    async def count(self) -> None:
        self.enough -= 1
        if not self.enough:
            self.are_enough.set()


async def test_a_connection_waits_for_an_unreachable_broker_and_logs_it_once(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    attempts = Attempts(5)
    async with Connection(f"mqtt://127.0.0.1:{port}", make_will=attempts.count, options=QUICK) as connection:
        await asyncio.wait_for(attempts.are_enough.wait(), PATIENCE_S)
        assert not connection.is_connected
        async with Mosquitto(port=port):
            await next_event(connection, Connected)
            # Read while the broker is there: its end is the next outage.
            errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors] == ["cannot use the broker, trying again until it works"]
    assert "Connection refused" in errors[0].problem  # type: ignore[attr-defined]


async def test_each_problem_of_an_outage_is_logged_once_also_after_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    attempts, closed = Attempts(6), Attempts(5)

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await closed.count()

    async with (
        asyncio.timeout(PATIENCE_S),
        Mosquitto() as broker,
        Connection(broker.url, make_will=attempts.count, options=QUICK) as connection,
    ):
        await next_event(connection, Connected)
        await broker.kill()
        await attempts.are_enough.wait()
        async with await asyncio.start_server(close, broker.host, broker.port):
            await closed.are_enough.wait()
        await broker.restart()
        await next_event(connection, Connected)
    problems = [record.problem for record in caplog.records if record.levelno >= logging.ERROR]  # type: ignore[attr-defined]
    assert len(set(problems)) == len(problems)
    assert "Connection refused" in problems[0]
    assert "the broker closed the connection before answering" in problems[1]


@asynccontextmanager
async def broker_with_password(folder: Path) -> AsyncIterator[Mosquitto]:
    passwords = folder / "passwords"
    tool = await asyncio.create_subprocess_exec("mosquitto_passwd", "-b", "-c", str(passwords), "alice", "right")
    assert await tool.wait() == 0
    async with Mosquitto(changes={"allow_anonymous": "false", "password_file": str(passwords)}) as broker:
        yield broker


async def test_a_wrong_password_is_logged_once_and_waited_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with broker_with_password(tmp_path) as broker:
        attempts = Attempts(4)
        url = f"mqtt://alice:wrong@{broker.host}:{broker.port}"
        async with Connection(url, make_will=attempts.count, options=QUICK) as connection:
            with pytest.raises(CredentialsError, match="'alice' is refused"):
                await connection.wait_first_try()
            await asyncio.wait_for(attempts.are_enough.wait(), PATIENCE_S)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "check user name and password" in errors[0].problem  # type: ignore[attr-defined]
    assert "wrong" not in caplog.text.replace("wrong password", "")


async def test_a_connection_can_be_left_at_any_moment_of_a_refusal(tmp_path: Path) -> None:
    """A cancellation that meets the refusal must not get lost: `asyncio.wait_for` of Python 3.11 drops it."""
    async with broker_with_password(tmp_path) as broker, asyncio.timeout(PATIENCE_S):
        for num_steps in range(150):
            attempts = Attempts(1)
            async with Connection(broker.url, make_will=attempts.count, options=QUICK):
                await attempts.are_enough.wait()
                for _ in range(num_steps % 15):
                    await asyncio.sleep(0.0002)


@pytest.mark.parametrize("is_mqtt5", [True, False])
async def test_the_right_password_is_taken(tmp_path: Path, is_mqtt5: bool) -> None:
    options = replace(QUICK, user="alice", password="right", is_mqtt5_tried=is_mqtt5)
    async with broker_with_password(tmp_path) as broker, reader_of(broker, options=options) as reader:
        assert reader.protocol_version == ("5" if is_mqtt5 else "3.1.1")


async def test_a_publish_that_the_acl_denies_is_an_error_and_the_connection_stays(tmp_path: Path, task_id: str) -> None:
    acl = tmp_path / "acl"
    acl.write_text(f"topic read #\ntopic write fedops/v1/{task_id}/clients/+/metrics\n")
    acl.chmod(0o600)
    async with Mosquitto(changes={"acl_file": str(acl)}) as broker, reader_of(broker, "fedops/v1/#") as reader:
        with pytest.raises(PublishRefusedError, match="Not authorized") as caught:
            await reader.publish(topics.client_status(task_id, MAC), status(task_id))
        assert caught.value.reason_code == 135
        await reader.publish(topics.client_metrics(task_id, MAC), metrics(task_id))
        event = await next_event(reader, Received)
        assert isinstance(event.message, ClientMetrics)


BAD_PAYLOADS: list[tuple[bytes, type[Exception]]] = [
    (b"not json", MalformedMessageError),
    (b"\xff\x00\xfe", MalformedMessageError),
    (b"[1, 2]", MalformedMessageError),
    (orjson.dumps({"status": "asleep"}), MalformedMessageError),
    (b'{"epoch": "soon"}', MalformedMessageError),
    (encode(status("another-task")), MismatchedMessageError),
    (b" " * 100_000, PayloadTooLargeError),
]


@pytest.mark.parametrize("is_mqtt5", [True, False])
async def test_bad_messages_are_dropped_on_receipt_and_the_stream_goes_on(
    broker: Mosquitto, task_id: str, is_mqtt5: bool
) -> None:
    topic = topics.client_status(task_id, MAC)
    async with reader_of(broker, "fedops/v1/#", options=replace(QUICK, is_mqtt5_tried=is_mqtt5)) as reader:
        for payload, kind in BAD_PAYLOADS:
            await say_raw(broker, str(topic), payload)
            assert isinstance((await next_event(reader, Malformed)).error, kind)
        await say_raw(broker, "fedops/v1/who/knows/what", b"{}")
        assert isinstance((await next_event(reader, Malformed)).error, TopicError)
        await reader.publish(topic, status(task_id))
        await next_status(reader, lambda said: said.task_id == task_id)
        assert reader.num_malformed == len(BAD_PAYLOADS) + 1


async def test_the_status_of_another_mac_is_dropped(broker: Mosquitto, task_id: str) -> None:
    async with reader_of(broker, STATUSES) as reader:
        other = encode(status(task_id, mac="02:00:00:00:00:02"))
        await say_raw(broker, str(topics.client_status(task_id, MAC)), other)
        error = (await next_event(reader, Malformed)).error
    assert isinstance(error, MismatchedMessageError)
    assert error.field == "client_mac"


@pytest.mark.parametrize("is_mqtt5", [True, False])
async def test_a_payload_of_10_mb_harms_no_other_client(task_id: str, is_mqtt5: bool) -> None:
    topic = topics.client_status(task_id, MAC)
    options = replace(QUICK, is_mqtt5_tried=is_mqtt5)
    async with (
        Mosquitto(changes={"message_size_limit": "0"}) as broker,
        reader_of(broker, STATUSES, options=options) as reader,
    ):
        await say_raw(broker, str(topic), b"x" * 10_000_000)
        await reader.publish(topic, status(task_id))
        await next_status(reader, lambda said: said.task_id == task_id)
        # MQTT 5: the broker kept it to itself, as our maximum packet size asks; 3.1.1: dropped at our door.
        assert reader.num_malformed == (0 if is_mqtt5 else 1)


async def test_the_shipped_broker_refuses_10_mb_and_keeps_the_sender(broker: Mosquitto, task_id: str) -> None:
    async with reader_of(broker, STATUSES) as reader:
        await say_raw(broker, str(topics.client_status(task_id, MAC)), b"x" * 10_000_000)
        await reader.publish(topics.client_status(task_id, MAC), status(task_id))
        await next_status(reader, lambda said: said.task_id == task_id)
        assert reader.num_malformed == 0


async def test_many_publishes_at_once_all_arrive(broker: Mosquitto, task_id: str) -> None:
    macs = [f"02:00:00:00:{n // 256:02x}:{n % 256:02x}" for n in range(1000)]
    async with reader_of(broker, STATUSES) as reader, asyncio.TaskGroup() as group:
        for mac in macs:
            group.create_task(reader.publish(topics.client_status(task_id, mac), status(task_id, mac=mac)))
        seen: set[str | None] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(seen) < len(macs):
                seen |= {event.topic.client_mac for event in await reader.drain() if isinstance(event, Received)}


async def test_drain_returns_an_empty_list_when_nothing_came(broker: Mosquitto) -> None:
    async with reader_of(broker) as reader:
        assert await reader.drain(timeout_s=0.01) == []


async def test_a_subscription_added_later_is_there_after_a_reconnect(broker: Mosquitto, task_id: str) -> None:
    async with reader_of(broker) as reader:
        await reader.subscribe([STATUSES])
        await reader.reconnect()
        await next_event(reader, Connected)
        await reader.publish(topics.client_status(task_id, MAC), status(task_id))
        await next_status(reader, lambda said: said.task_id == task_id)


async def test_a_broker_that_stops_answering_is_noticed_by_keep_alive(broker: Mosquitto) -> None:
    async with reader_of(broker, options=replace(QUICK, keepalive_s=1)) as reader:
        broker.pause()
        assert "Keep alive timeout" in (await next_event(reader, Disconnected)).reason
        broker.resume()
        await next_event(reader, Connected)


async def test_a_connect_under_way_can_be_left_at_once(broker: Mosquitto) -> None:
    attempts = Attempts(1)
    broker.pause()
    async with asyncio.timeout(PATIENCE_S), Connection(broker.url, make_will=attempts.count, options=SLOW):
        await attempts.are_enough.wait()
    broker.resume()


SLOW = replace(QUICK, connect_timeout_s=600.0)


def make_certificate(folder: Path, name: str) -> dict[str, str]:
    """Make an authority, `{name}.pem`, and a certificate for 127.0.0.1; return mosquitto's directives for it."""
    now = datetime.now(UTC)
    authority = make_authority(f"authority of {name}", now)
    made = issue(authority, name, hosts=["127.0.0.1"], now=now, days=2)
    cert, key = folder / f"{name}-server.pem", folder / f"{name}-server.key"
    (folder / f"{name}.pem").write_bytes(authority.certificate)
    cert.write_bytes(made.certificate)
    key.write_bytes(made.key)
    return {"certfile": str(cert), "keyfile": str(key)}


async def test_tls_with_the_right_ca_connects_and_with_another_reports_the_reason(tmp_path: Path) -> None:
    changes = make_certificate(tmp_path, "broker")
    make_certificate(tmp_path, "other")
    async with Mosquitto(changes=changes) as broker:
        assert broker.url.startswith("mqtts://")
        async with reader_of(broker, options=replace(QUICK, ca_file=tmp_path / "broker.pem")) as reader:
            assert reader.is_connected
        async with Connection(broker.url, options=replace(QUICK, ca_file=tmp_path / "other.pem")) as stranger:
            with pytest.raises(ConnectError, match="certificate verify failed"):
                await stranger.wait_first_try()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def without_mqtt5(broker: Mosquitto, answer: Answer) -> AsyncIterator[str]:
    """A door before a real broker that answers a CONNECT of MQTT 5 itself and lets others through; yields its URL."""

    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())  # type: ignore[arg-type]
        async with closing(writer):
            first = await reader.read(4096)
            if first[8] == 5:
                await answer(reader, writer)
                return
            far_reader, far_writer = await asyncio.open_connection(broker.host, broker.port)
            async with closing(far_writer), asyncio.TaskGroup() as group:
                far_writer.write(first)
                group.create_task(copy(reader, far_writer))
                group.create_task(copy(far_reader, writer))

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(4096):
            sink.write(chunk)
        sink.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.wait(served, timeout=PATIENCE_S)


@asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        await writer.wait_closed()


async def refuse_version(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes([0x20, 3, 0, 132, 0]))
    await writer.drain()


async def refuse_version_as_311_does(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes([0x20, 2, 0, 1]))
    await writer.drain()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer nothing until the other side has closed."""
    await reader.read()


@pytest.mark.parametrize("answer", [refuse_version, refuse_version_as_311_does, hang])
async def test_a_broker_without_mqtt_5_is_spoken_to_in_311(broker: Mosquitto, answer: Answer) -> None:
    options = replace(QUICK, connect_timeout_s=0.5)
    async with without_mqtt5(broker, answer) as url, Connection(url, options=options) as connection:
        assert (await next_event(connection, Connected)).protocol_version == "3.1.1"


async def refuse_client_id(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes([0x20, 3, 0, 133, 0]))
    await writer.drain()


async def test_a_refused_client_id_ends_the_connection_with_the_reason(broker: Mosquitto) -> None:
    async with without_mqtt5(broker, refuse_client_id) as url:
        with pytest.raises(ClientIdError, match=r"'some\.id'.*letters, digits"):
            async with asyncio.timeout(PATIENCE_S), Connection(url, client_id="some.id", options=QUICK) as connection:
                await connection.drain()
        with pytest.raises(ClientIdError):
            async with asyncio.timeout(PATIENCE_S), connect(url, client_id="some.id", options=QUICK):
                pass


@pytest.mark.parametrize("qos", [0, 1])
async def test_subscribe_qos_is_the_qos_of_what_comes(broker: Mosquitto, task_id: str, qos: int) -> None:
    """A message of a higher QoS is delivered at the subscription's (MQTT 5, 3.8.4), and needs no answer at 0."""
    topic = topics.client_status(task_id, MAC)
    taken: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with reader_of(broker, str(topic), options=replace(QUICK, subscribe_qos=qos)) as reader:
        assert reader._session is not None
        reader._session._paho.on_message = lambda _client, _userdata, message: taken.set_result(message.qos)
        await reader.publish(topic, status(task_id))
        assert await asyncio.wait_for(taken, PATIENCE_S) == qos


async def test_user_and_password_count_beside_options(tmp_path: Path) -> None:
    async with broker_with_password(tmp_path) as broker:
        async with connect(broker.url, user="alice", password="right", options=QUICK) as bus:
            assert bus.is_connected
        async with connect(broker.url, options=replace(QUICK, user="alice", password="right")) as bus:
            assert bus.is_connected
        with pytest.raises(CredentialsError):
            async with connect(broker.url, options=QUICK):
                pass


async def refusal_of(call: Awaitable[None]) -> Exception | None:
    try:
        await call
    except (NotConnectedError, PublishTimeoutError) as error:
        return error
    return None


def metrics(task_id: str) -> ClientMetrics:
    return ClientMetrics(kind="round", task_id=task_id, client_mac=MAC, instance="a", at=utc_now())


async def test_a_socket_that_closes_before_its_writer_is_registered_is_left_alone(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    address = parse_broker_url(broker.url)
    async with open_session(
        address, QUICK, client_id=None, is_mqtt5=True, tls=None, will=None, on_message=lambda *_: None
    ) as session:
        paho = session._paho
        sock = paho.socket()
        paho.on_socket_register_write(paho, None, sock)
        paho._sock_close()
        await asyncio.sleep(0)  # the loop's next turn, in which the writer would be registered
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize(
    ("line", "says"), [("retain_available false", "no retained messages"), ("max_qos 0", "QoS 0 only")]
)
async def test_a_broker_that_cannot_carry_a_status_is_refused_with_what_it_lacks(
    tmp_path: Path, line: str, says: str
) -> None:
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener 1883 127.0.0.1\nallow_anonymous true\n{line}\n")
    async with Mosquitto(config=config) as broker:
        session = open_session(
            parse_broker_url(broker.url),
            QUICK,
            client_id=None,
            is_mqtt5=True,
            tls=None,
            will=None,
            on_message=lambda *said: None,
        )
        with pytest.raises(ConnectError, match=says):
            await session.__aenter__()
