"""The line spoken by hand: refusals, limits, malformed frames, resumed and repeated uploads, cuts, TLS."""

import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from line_parts import WAIT_S, Gate, Lines, a_metric, ask, ask_in_thread, echo_app, mac_of

from fedops_mqtt.line import wire
from fedops_mqtt.line.codec import HEAD, MAX_HEADER_VALUES, encode_message, read_message
from fedops_mqtt.line.connection import Answers, probe
from fedops_mqtt.line.errors import LineConfigError
from fedops_mqtt.line.run_state import RunOver
from fedops_mqtt.line.server import LineServer, LineTls
from fedops_mqtt.protocol import Outcome, RunOutcome

BIG = ArrayRecord([np.arange(4_000_000, dtype="f4")])
"""16 MB: more than loopback's socket buffers, so that a connection can break in the middle."""


class HandClient:
    """A client spoken by hand; its control request is open, unless it only joins."""

    def __init__(self, server: LineServer, *, mac: str = mac_of(1), opens_control: bool = True) -> None:
        self.server = server
        self.mac = mac
        self.send_join()
        if opens_control:
            self.open_control()

    def join(self) -> None:
        """Join again."""
        self.send_join()
        self.open_control()

    def send_join(self) -> None:
        self.headers = {}
        body = json.dumps({"client_mac": self.mac, "instance": "hand", "attempt": 1}).encode()
        status, answer = self.ask("POST", wire.JOIN_PATH, body)
        assert status == 200
        self.headers = {wire.SESSION_HEADER: answer["session"]}

    def open_control(self) -> None:
        self.control = self.connect()
        self.control.request("GET", wire.CONTROL_PATH, headers=self.headers)
        self.orders = self.control.getresponse()
        assert json.loads(self.orders.readline()) == {"ping": 1}

    headers: dict[str, str] = {}  # noqa: RUF012 - replaced at join

    def connect(self) -> http.client.HTTPConnection:
        host, _, port = self.server.address.rpartition(":")
        return http.client.HTTPConnection(host, int(port), timeout=WAIT_S)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        with closing(self.connect()) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body or None, headers={**self.headers, **named})
            response = connection.getresponse()
            data = response.read()
            return response.status, json.loads(data) if data else None

    def next(self) -> Message:
        with closing(self.connect()) as connection:
            connection.request("GET", wire.NEXT_PATH, headers=self.headers)
            response = connection.getresponse()
            assert response.status == 200
            return read_message(response.read, num_bytes=response.length or 0, max_bytes=1 << 30)

    def post(self, message_id: str, data: bytes, *, length: int | None = None, offset: int = 0) -> tuple[int, Any]:
        length = len(data) if length is None else length
        return self.ask(
            "POST", f"{wire.REPLY_PATH}{message_id}", data, line_length=str(length), line_offset=str(offset)
        )

    def state(self, message_id: str) -> dict[str, Any]:
        status, state = self.ask("GET", f"{wire.REPLY_PATH}{message_id}")
        assert status == 200
        return dict(state)

    def post_cut(self, message_id: str, data: bytes, sent_bytes: int) -> None:
        """Start an upload and break the connection in the middle."""
        with closing(self.connect()) as connection:
            connection.putrequest("POST", f"{wire.REPLY_PATH}{message_id}")
            for name, value in {**self.headers, wire.LENGTH_HEADER: str(len(data)), wire.OFFSET_HEADER: "0"}.items():
                connection.putheader(name, value)
            connection.putheader("content-length", str(len(data)))
            connection.endheaders()
            connection.send(data[:sent_bytes])


@pytest.fixture
def hand(lines: Lines) -> Iterator[HandClient]:
    client = HandClient(lines.serve(limits={"ping_s": 30.0, "max_message_bytes": 50_000_000}))
    yield client
    client.control.close()


def reply_to(asked: Message, content: RecordDict | None = None) -> bytes:
    reply = Message(content or a_metric(), reply_to=asked)
    return b"".join(encode_message(reply).chunks(max_bytes=1 << 20))


def replies_of(results: "queue.Queue[Any]") -> list[Message]:
    replies = results.get(timeout=WAIT_S)
    return list(replies)


def test_a_message_is_handed_out_until_it_is_answered_and_a_reply_counts_once(hand: HandClient) -> None:
    results = ask_in_thread(hand.server)
    asked = hand.next()
    again = hand.next()
    assert again.metadata.message_id == asked.metadata.message_id
    data = reply_to(asked)
    assert hand.post(asked.metadata.message_id, data) == (
        200,
        {"received_bytes": 0, "is_done": True, "was_taken": True},
    )
    assert hand.post(asked.metadata.message_id, data) == (
        200,
        {"received_bytes": 0, "is_done": True, "was_taken": True},
    )
    assert len(replies_of(results)) == 1
    assert hand.server.bytes_in == len(data)


def test_an_upload_goes_on_where_it_broke(hand: HandClient) -> None:
    results = ask_in_thread(hand.server)
    asked = hand.next()
    message_id, data = asked.metadata.message_id, reply_to(asked, RecordDict({"arrays": BIG}))
    hand.post_cut(message_id, data, 5_000_000)
    received = 0
    while received < 5_000_000:  # the server reads what is on its way after we have left
        received = hand.state(message_id)["received_bytes"]
    status, _ = hand.post(message_id, data[received:], length=len(data), offset=received)
    assert status == 200
    (reply,) = replies_of(results)
    assert reply.content["arrays"] == BIG
    assert hand.server.bytes_in == len(data)


def test_an_upload_goes_on_after_the_client_was_lost_and_came_back(lines: Lines, hand: HandClient) -> None:
    lines.join(hand.server, echo_app(slow := Gate()), mac=mac_of(2))
    lines.changes.wait("joined", mac_of(2))
    results = ask_in_thread(hand.server)
    asked = hand.next()
    message_id, data = asked.metadata.message_id, reply_to(asked)
    assert hand.post(message_id, data[:100], length=len(data))[1]["received_bytes"] == 100
    hand.control.close()
    lines.changes.wait("lost")
    hand.join()
    assert hand.state(message_id) == {"received_bytes": 100, "is_done": False, "was_taken": False}
    assert hand.post(message_id, data[100:], length=len(data), offset=100)[1]["was_taken"]
    slow.opened.set()
    assert [reply.has_content() for reply in replies_of(results)] == [True, True]
    assert hand.server._run_state._uploads == {}


def test_the_answer_to_a_reply_may_be_the_next_message(hand: HandClient) -> None:
    results = ask_in_thread(hand.server)
    asked = hand.next()
    data, path = reply_to(asked), f"{wire.REPLY_PATH}{asked.metadata.message_id}"
    headers = {wire.LENGTH_HEADER: str(len(data)), wire.OFFSET_HEADER: "0", wire.THEN_HEADER: "next"}
    with closing(hand.connect()) as connection:
        connection.request("POST", path, body=data, headers={**hand.headers, **headers})
        assert replies_of(results)[0].has_content()
        results = ask_in_thread(hand.server)
        response = connection.getresponse()
        again = read_message(response.read, num_bytes=response.length or 0, max_bytes=1 << 30)
    assert again.metadata.message_id != asked.metadata.message_id
    assert hand.state(asked.metadata.message_id) == {"received_bytes": 0, "is_done": True, "was_taken": True}
    assert hand.post(again.metadata.message_id, reply_to(again))[0] == 200
    assert replies_of(results)[0].has_content()


def test_an_upload_may_come_in_parts(hand: HandClient) -> None:
    results = ask_in_thread(hand.server)
    asked = hand.next()
    message_id, data = asked.metadata.message_id, reply_to(asked)
    status, state = hand.post(message_id, data[:10], length=len(data))
    assert (status, state) == (200, {"received_bytes": 10, "is_done": False, "was_taken": False})
    status, state = hand.post(message_id, data[10:], length=len(data), offset=10)
    assert (status, state["was_taken"]) == (200, True)
    assert replies_of(results)[0].has_content()


@pytest.mark.parametrize(("offset", "length"), [(7, None), (10**9, None)])
def test_an_upload_at_a_wrong_offset_is_refused(hand: HandClient, offset: int, length: int | None) -> None:
    results = ask_in_thread(hand.server)
    asked = hand.next()
    data = reply_to(asked)
    status, refusal = hand.post(asked.metadata.message_id, data, offset=offset, length=length)
    assert (status, refusal["code"]) == (409, "offset")
    assert hand.post(asked.metadata.message_id, data)[0] == 200
    assert replies_of(results)[0].has_content()


def with_many_values(data: bytes) -> bytes:
    """Put a header of millions of small values in the place of a frame's own."""
    magic, metadata_bytes, _ = HEAD.unpack(data[: HEAD.size])
    content = b'{"records":[' + b"[]," * MAX_HEADER_VALUES + b"[]]}"
    metadata = data[HEAD.size : HEAD.size + metadata_bytes]
    return bytes(HEAD.pack(magic, metadata_bytes, len(content)) + metadata + content)


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"x" * len(data), lambda data: data[:-3], lambda data: data + b"abc", with_many_values],
)
def test_a_malformed_frame_is_400_counted_and_harmless(hand: HandClient, spoil: Any) -> None:
    results = ask_in_thread(hand.server)
    asked = hand.next()
    data = reply_to(asked)
    status, refusal = hand.post(asked.metadata.message_id, spoil(data))
    assert (status, refusal["code"]) == (400, "malformed")
    assert hand.server.malformed_frames == 1
    assert hand.post(asked.metadata.message_id, data)[0] == 200
    assert replies_of(results)[0].has_content()


def test_an_error_with_bytes_after_it_affects_no_other(lines: Lines, hand: HandClient) -> None:
    """One client stopped the whole line with it once, for ever."""
    lines.join(hand.server, echo_app(), mac=mac_of(2))
    lines.changes.wait("joined", mac_of(2))
    results = ask_in_thread(hand.server)
    asked = hand.next()
    failed = encode_message(Message(Error(1, "x"), reply_to=asked))
    status, refusal = hand.post(asked.metadata.message_id, b"".join(failed.chunks(max_bytes=1 << 20)) + b"more")
    assert (status, refusal["code"]) == (400, "malformed")
    lines.changes.wait_phases("training", "waiting", mac=mac_of(2))
    assert hand.ask("POST", wire.LEAVE_PATH, b'{"outcome": "failed"}')[0] == 200
    assert sorted(reply.has_content() for reply in replies_of(results)) == [False, True]
    assert ask(hand.server)[0].has_content()


def test_a_reason_of_any_length_reaches_the_clients_cut(lines: Lines) -> None:
    server = lines.serve()
    client = lines.join(server, echo_app())
    lines.changes.wait("joined")
    server.close(RunOutcome.FAILED, "why " * 100_000, linger_s=WAIT_S)
    end = client.end()
    assert (end.run_outcome, end.reason[:16], len(end.reason) < 5000) == (RunOutcome.FAILED, "run failed: why ", True)


def test_a_reply_in_the_name_of_another_node_is_malformed(hand: HandClient) -> None:
    results = ask_in_thread(hand.server)
    asked = hand.next()
    forged = Message(a_metric(), reply_to=asked)
    forged.metadata.__dict__["_src_node_id"] = 99
    data = b"".join(encode_message(forged).chunks(max_bytes=1 << 20))
    assert hand.post(asked.metadata.message_id, data)[0] == 400
    assert hand.post(asked.metadata.message_id, reply_to(asked))[0] == 200
    assert replies_of(results)[0].metadata.src_node_id == asked.metadata.dst_node_id


def test_a_reply_to_nothing_is_done_and_not_taken(hand: HandClient) -> None:
    assert hand.state("nobody-1") == {"received_bytes": 0, "is_done": True, "was_taken": False}
    assert hand.post("nobody-1", b"x")[0] == 200


def test_an_upload_over_the_limit_is_413_before_it_is_read(hand: HandClient) -> None:
    results = ask_in_thread(hand.server)
    asked = hand.next()
    status, refusal = hand.post(asked.metadata.message_id, b"x", length=50_000_001)
    assert (status, refusal["code"]) == (413, "too_large")
    assert hand.post(asked.metadata.message_id, reply_to(asked))[0] == 200
    assert replies_of(results)[0].has_content()


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/", b"", 404),
        ("PUT", wire.JOIN_PATH, b"{}", 404),
        ("POST", wire.JOIN_PATH, b"not json", 400),
        ("POST", wire.JOIN_PATH, b'{"client_mac": "x", "instance": "i", "attempt": 1}', 400),
        ("POST", wire.JOIN_PATH, b'{"client_mac": "02:00:00:00:00:01", "instance": "i", "attempt": -1}', 400),
        ("POST", wire.JOIN_PATH, b'{"client_mac": "02:00:00:00:00:01", "instance": "i", "attempt": %d}' % 2**63, 400),
        ("POST", wire.JOIN_PATH, b" " * 70_000, 413),
        ("POST", wire.LEAVE_PATH, b'{"outcome": "bored"}', 400),
        ("DELETE", f"{wire.REPLY_PATH}x", b"", 405),
    ],
)
def test_what_makes_no_sense_is_refused(hand: HandClient, method: str, path: str, body: bytes, expected: int) -> None:
    status, refusal = hand.ask(method, path, body)
    assert (status, bool(refusal["code"])) == (expected, True)


@pytest.mark.parametrize("path", [wire.NEXT_PATH, wire.CONTROL_PATH, f"{wire.REPLY_PATH}x"])
def test_without_a_session_nothing_is_answered(hand: HandClient, path: str) -> None:
    hand.headers = {wire.SESSION_HEADER: "0" * 32}
    assert hand.ask("GET", path)[0] == 409
    hand.headers = {}
    assert hand.ask("GET", path)[0] == 409


@pytest.mark.parametrize("length", ["", "-1", "1e3", "9" * 30])
def test_a_length_that_is_no_number_is_malformed(hand: HandClient, length: str) -> None:
    results = ask_in_thread(hand.server)
    asked = hand.next()
    path = f"{wire.REPLY_PATH}{asked.metadata.message_id}"
    assert hand.ask("POST", path, b"x", line_length=length, line_offset="0")[0] == 400
    assert hand.post(asked.metadata.message_id, reply_to(asked))[0] == 200
    assert replies_of(results)


def test_a_session_needs_its_token_each_time(lines: Lines) -> None:
    server = lines.serve(join_token="shared", limits={"ping_s": 30.0})
    lines.join(server, echo_app(), token="shared")
    lines.changes.wait("joined")
    hand = HandClient.__new__(HandClient)
    hand.server, hand.headers = server, {wire.SESSION_HEADER: server.members[mac_of(1)].session}
    assert hand.ask("GET", wire.NEXT_PATH)[0] == 401
    assert hand.ask("GET", wire.NEXT_PATH, authorization="Bearer wrong")[0] == 401


def test_after_the_end_every_request_is_gone(hand: HandClient) -> None:
    asked: queue.Queue[Any] = queue.Queue()
    poll = threading.Thread(target=lambda: asked.put(hand.ask("GET", wire.NEXT_PATH)), daemon=True)
    poll.start()
    over = RunOver(outcome=RunOutcome.COMPLETED, reason="all done")
    # `close` stops serving right after this, and who asks then meets no server.
    assert hand.server._run_state.close(over, time.monotonic() + WAIT_S) == []
    assert json.loads(hand.orders.read()) == {"gone": "completed", "reason": "all done"}
    gone = 410, {"code": "gone", "reason": "all done", "outcome": "completed"}
    assert asked.get(timeout=WAIT_S) in [gone, (204, None)]
    reply = f"{wire.REPLY_PATH}m"
    for method, path in [
        ("GET", wire.NEXT_PATH), ("GET", wire.CONTROL_PATH), ("GET", reply), ("POST", reply), ("POST", wire.PONG_PATH),
        ("POST", wire.LEAVE_PATH),
    ]:  # fmt: skip
        assert hand.ask(method, path) == gone, path
    body = json.dumps({"client_mac": hand.mac, "instance": "hand", "attempt": 2}).encode()
    assert hand.ask("POST", wire.JOIN_PATH, body) == gone


def test_a_client_that_joins_after_the_rejoin_limit_is_given_the_time_to_open_its_control_request(lines: Lines) -> None:
    server = lines.serve(min_clients=2, max_clients=2, limits={"ping_s": 30.0, "rejoin_s": 0.1})
    first = HandClient(server)
    results = ask_in_thread(server)
    threading.Event().wait(0.3)  # longer than the rejoin limit: it is not what counts here
    last = HandClient(server, mac=mac_of(2), opens_control=False)
    first.control.close()
    first.join()  # the server looks anew who is there
    last.open_control()
    for each in (first, last):
        asked = each.next()
        assert each.post(asked.metadata.message_id, reply_to(asked))[0] == 200
    assert [reply.has_content() for reply in results.get(timeout=WAIT_S)] == [True, True]
    for each in (first, last):
        each.control.close()


def test_a_reply_over_the_limit_fails_its_client_only(lines: Lines) -> None:
    def grow(message: Message, context: Context) -> None:
        message.content["big"] = BIG

    server = lines.serve(min_clients=2, limits={"max_message_bytes": 1_000_000})
    big = lines.join(server, echo_app(grow))
    lines.join(server, echo_app(), mac=mac_of(2))
    replies = ask(server)
    assert sorted(reply.has_content() for reply in replies) == [False, True]
    end = big.end()
    assert end.outcome is Outcome.FAILED
    assert "over the line's limit of 1000000" in end.reason
    assert "max_message_bytes" in (lines.changes.wait("failed").member.reason or "")


class CuttingProxy:
    """Passes bytes on; each direction of each connection is cut after `cut_after` bytes, until told to be good."""

    def __init__(self, target: str, cut_after: int) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.cut_after: int | None = cut_after
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                passed += len(data)
                if self.cut_after is not None and passed > self.cut_after:
                    self.cuts += 1
                    break
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def test_a_transfer_through_a_network_that_breaks_arrives_whole_and_once(lines: Lines) -> None:
    server = lines.serve(limits={"ping_s": 30.0})
    with closing(CuttingProxy(server.address, 6_000_000)) as proxy:
        trained: list[str] = []
        grown = echo_app(lambda message, context: grow(message, trained))
        client = lines.join(proxy.address, grown)
        (reply,) = ask(server)
        assert reply.content["big"] == BIG
        assert len(trained) == 1
        assert proxy.cuts >= 2
        assert server.bytes_in < BIG.count_bytes() + 100_000
        assert not client.ended.is_set()


def grow(message: Message, trained: list[str]) -> None:
    trained.append(message.metadata.message_id)
    message.content["big"] = BIG


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> LineTls:
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl server")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return LineTls(cert_file=cert_file, key_file=key_file)


def test_a_line_with_tls_serves_clients_that_have_its_ca(lines: Lines, tls: LineTls) -> None:
    server = lines.serve(tls=tls)
    client = lines.join(server, echo_app(), ca_file=tls.cert_file)
    arrays = RecordDict({"arrays": BIG})
    (reply,) = ask(server, arrays)
    assert reply.content["arrays"] == BIG
    client.runner.stop("enough")
    assert client.end().reason == "enough"


def test_a_client_with_a_ca_refuses_a_plain_line(lines: Lines, tls: LineTls) -> None:
    server = lines.serve()
    end = lines.join(server, echo_app(), ca_file=tls.cert_file, join_s=0.5).end()
    assert end.outcome is Outcome.FAILED
    assert "SSL" in end.reason
    assert not server.members


def test_a_client_without_a_ca_is_not_served_by_a_tls_line(lines: Lines, tls: LineTls) -> None:
    server = lines.serve(tls=tls)
    end = lines.join(server, echo_app(), join_s=0.5).end()
    assert end.outcome is Outcome.FAILED
    assert not server.members


def test_a_wrong_ca_file_is_reported_at_once(lines: Lines, tmp_path: Path) -> None:
    with pytest.raises(LineConfigError, match="CA file"):
        lines.join("127.0.0.1:1", echo_app(), ca_file=tmp_path / "none.pem")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_wrong_certificate_is_reported_at_once(
    lines: Lines, tls: LineTls, tmp_path: Path, content: str | None
) -> None:
    cert_file = tmp_path / "cert.pem"
    if content is not None:
        cert_file.write_text(content)
    with pytest.raises(LineConfigError, match="certificate"):
        lines.serve(tls=LineTls(cert_file=cert_file, key_file=tls.key_file))


@pytest.mark.parametrize("address", ["nowhere", ":8080", "host:", "host:port", "host:70000"])
def test_an_invalid_address_is_reported_at_once(lines: Lines, address: str) -> None:
    with pytest.raises(LineConfigError, match="host:port"):
        lines.serve(listen=address)


def test_an_advertised_host_gets_the_port_that_was_taken(lines: Lines) -> None:
    server = lines.serve(advertise="fl.example")
    host, _, port = server.address.rpartition(":")
    assert (host, int(port) > 0) == ("fl.example", True)
    assert lines.serve(advertise="fl.example:80").address == "fl.example:80"


def test_a_probe_distinguishes_a_line_grpc_and_no_listener(lines: Lines, tls: LineTls, free_port: int) -> None:
    assert probe(f"127.0.0.1:{free_port}", timeout_s=1.0) is Answers.NOBODY
    assert probe(lines.serve().address, timeout_s=60.0) is Answers.LINE
    assert probe(lines.serve(tls=tls).address, timeout_s=60.0, ca_file=tls.cert_file) is Answers.LINE
    classic = grpc.server(futures.ThreadPoolExecutor(1))
    port = classic.add_insecure_port("127.0.0.1:0")
    classic.start()
    try:
        assert probe(f"127.0.0.1:{port}", timeout_s=2.0) is Answers.GRPC
    finally:
        classic.stop(None).wait(WAIT_S)
