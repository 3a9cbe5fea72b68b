"""An app bundle on the line: whole, in ranges, after breaks; whoever has no token gets none, and nobody gets more."""

import hashlib
import http.client
import http.server
import resource
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from http_stand_in import endless

from fedops_mqtt.line.access import make_token
from fedops_mqtt.line.app_transfer import AppTransfer, TransferError
from fedops_mqtt.line.endpoints import ServedApp
from fedops_mqtt.line.errors import LineRefusedError
from fedops_mqtt.line.server import LineServer

SECRET = b"0123456789abcdef"
MAC = "02:00:00:00:00:01"
TOKEN = make_token(SECRET, "r1", MAC)
DATA = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(DATA).hexdigest()


@contextmanager
def line(app: bytes | None = DATA) -> Iterator[LineServer]:
    with LineServer(run_id="r1", run_secret=SECRET, app=app) as server:
        yield server


def transfer(into: Path, server_ip: str, **changes: object) -> AppTransfer:
    values: dict[str, object] = {
        "digest": DIGEST,
        "size": len(DATA),
        "client_mac": MAC,
        "token": TOKEN,
        "ca_file": None,
    }
    values |= {"server_ip": server_ip, "into": into, "stall_s": 60.0, "limit_s": 120.0}
    return AppTransfer(**(values | changes))  # type: ignore[arg-type]


def test_a_bundle_comes_whole_and_its_second_half_alone(tmp_path: Path) -> None:
    into = tmp_path / "app.part"
    with line() as server:
        first = transfer(into, server.address)
        first.run()
        assert into.read_bytes() == DATA
        assert first.num_received == len(DATA)
        into.write_bytes(DATA[:100_000])
        second = transfer(into, server.address)
        second.run()
    assert into.read_bytes() == DATA
    assert second.num_received == len(DATA) - 100_000
    assert into.stat().st_mode & 0o777 == 0o600


def test_all_clients_are_served_from_one_buffer() -> None:
    app = ServedApp(DATA)
    assert all(app.part(asked).content.obj is DATA for asked in (None, "bytes=7-", "bytes=5-9"))


def test_what_is_there_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "app.part").write_bytes(DATA)
    transfer(tmp_path / "app.part", "127.0.0.1:1").run()


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"token": None}, "token"),
        ({"token": "0" * 64}, "token"),
        ({"client_mac": "02:00:00:00:00:02"}, "token"),
        ({"digest": "0" * 64}, "no app"),
    ],
    ids=["no token", "wrong token", "token of another client", "another app"],
)
def test_an_unauthorized_download_is_refused_at_once(tmp_path: Path, changes: dict[str, object], fact: str) -> None:
    with line() as server, pytest.raises(TransferError, match=fact):
        transfer(tmp_path / "app.part", server.address, **changes).run()
    assert not (tmp_path / "app.part").exists()


def test_a_full_disk_is_reported_and_left_as_it_was(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with line() as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
        try:
            with pytest.raises(TransferError, match=r"no space for the app's 1,280,000 bytes.*free some"):
                transfer(tmp_path / "app.part", server.address).run()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_server_without_an_app_has_none(tmp_path: Path) -> None:
    with line(None) as server, pytest.raises(TransferError, match="no app"):
        transfer(tmp_path / "app.part", server.address).run()


def test_a_partial_file_that_is_longer_than_the_servers_is_fetched_anew(tmp_path: Path) -> None:
    (tmp_path / "app.part").write_bytes(b"x" * len(DATA))
    with line() as server:
        one = transfer(tmp_path / "app.part", server.address, size=len(DATA) + 1)

        def stop_when_whole() -> None:
            was_whole.append(is_at_last(tmp_path / "app.part", DATA))
            one.stop()

        was_whole: list[bool] = []
        stopping = threading.Thread(target=stop_when_whole)
        stopping.start()
        with pytest.raises(TransferError):
            one.run()
        stopping.join()
    assert was_whole == [True]


def is_at_last(path: Path, content: bytes) -> bool:
    until = time.monotonic() + 100
    while path.read_bytes() != content and time.monotonic() < until:
        time.sleep(0.01)
    return time.monotonic() < until


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    with line() as server, pytest.raises(TransferError, match="cannot be written"):
        transfer(tmp_path / "missing" / "app.part", server.address).run()


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    (tmp_path / "app.part").symlink_to(tmp_path / "secret")
    with line() as server, pytest.raises(TransferError, match="cannot be written"):
        transfer(tmp_path / "app.part", server.address).run()
    assert (tmp_path / "secret").read_bytes() == b""


def test_an_address_without_a_listener_ends_with_its_name_and_the_limit(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"127\.0\.0\.1:1"):
        transfer(tmp_path / "app.part", "127.0.0.1:1", limit_s=0.2).run()


@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=5-9", "bytes=1279999-", "bytes=3-99999999"])
def test_a_range_has_the_bytes_it_names(asked: str) -> None:
    first, _, last = asked.removeprefix("bytes=").partition("-")
    part = ServedApp(DATA).part(asked)
    assert b"".join(part.chunks()) == DATA[int(first) : int(last) + 1 if last else None]
    assert part.status == 206


@pytest.mark.parametrize("asked", ["bytes=1280000-", "bytes=9-5", "bytes=999999999999999-"])
def test_a_range_outside_is_refused(asked: str) -> None:
    with pytest.raises(LineRefusedError):
        ServedApp(DATA).part(asked)


@pytest.mark.parametrize(
    "asked", [None, "", "bytes=-5", "bytes=0-1,3-4", "lines=0-", "bytes=a-", "bytes=" + "9" * 400 + "-"]
)
def test_a_range_of_another_form_gets_the_whole(asked: str | None) -> None:
    part = ServedApp(DATA).part(asked)
    assert (part.status, part.num_bytes) == (200, len(DATA))


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def hostile(*answers: Answer) -> Iterator[str]:
    """A server that is not ours: it gives one answer after the other, the last one for ever."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            (left.pop(0) if len(left) > 1 else left[0])(self)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def piece(first: int, num_bytes: int, *, status: int = 206, claimed: int | None = None) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        if status == 206:
            request.send_header("content-range", f"bytes {first}-{first + num_bytes - 1}/{len(DATA)}")
        request.send_header("content-length", str(claimed or num_bytes))
        request.end_headers()
        request.wfile.write(DATA[first : first + num_bytes])
        request.wfile.flush()
        request.connection.shutdown(socket.SHUT_RDWR)

    return answer


def test_a_transfer_that_breaks_goes_on_where_it_stopped(tmp_path: Path) -> None:
    into, half = tmp_path / "app.part", len(DATA) // 2
    with hostile(piece(0, half, status=200, claimed=len(DATA)), piece(half, len(DATA) - half)) as address:
        one = transfer(into, address)
        one.run()
    assert into.read_bytes() == DATA
    assert one.num_received == len(DATA)


def test_a_server_without_ranges_sends_it_from_the_first_byte(tmp_path: Path) -> None:
    (tmp_path / "app.part").write_bytes(b"old")
    with hostile(piece(0, len(DATA), status=200)) as address:
        transfer(tmp_path / "app.part", address).run()
    assert (tmp_path / "app.part").read_bytes() == DATA


def test_a_download_takes_no_more_bytes_than_the_trigger_names(tmp_path: Path) -> None:
    with hostile(piece(0, len(DATA), status=200)) as address:
        transfer(tmp_path / "app.part", address, size=1000).run()
    assert (tmp_path / "app.part").read_bytes() == DATA[:1000]


def test_another_range_than_the_one_asked_for_is_not_appended(tmp_path: Path) -> None:
    (tmp_path / "app.part").write_bytes(DATA[:10])
    with hostile(piece(20, 100)) as address, pytest.raises(TransferError, match="another range"):
        transfer(tmp_path / "app.part", address, limit_s=0.3).run()
    assert (tmp_path / "app.part").read_bytes() == DATA[:10]


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        (endless(500, bytes(1 << 20), 0), "answer 500 has over 65536 bytes"),
        (endless(500, b" ", 0.2), "from something else"),
        (endless(200, b" ", 0.2), "of 1,280,000 bytes came within 3 s"),
    ],
    ids=["error without end", "slow error", "slow bundle"],
)
def test_a_transfer_ends_within_its_limit_whatever_the_server_sends(tmp_path: Path, answer: Answer, fact: str) -> None:
    tracemalloc.start()
    try:
        with hostile(answer) as address, pytest.raises(TransferError, match=fact):
            transfer(tmp_path / "app.part", address, limit_s=3.0).run()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * 2**20


def test_a_stop_ends_a_transfer_that_waits(tmp_path: Path) -> None:
    asked = threading.Event()

    def silent(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.set()
        request.rfile.read(1)

    failures: list[TransferError] = []

    def run() -> None:
        try:
            one.run()
        except TransferError as error:
            failures.append(error)

    with hostile(silent) as address:
        one = transfer(tmp_path / "app.part", address)
        thread = threading.Thread(target=run)
        thread.start()
        assert asked.wait(60)
        one.stop()
        thread.join(60)
    assert "stopped" in str(failures[0])


def test_a_server_that_moves_is_followed(tmp_path: Path) -> None:
    asked = threading.Event()

    def silent(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.set()
        request.rfile.read(1)

    with line() as server, hostile(silent) as address:
        one = transfer(tmp_path / "app.part", address)
        thread = threading.Thread(target=one.run)
        thread.start()
        assert asked.wait(60)
        one.redirect(server.address)
        thread.join(60)
    assert (tmp_path / "app.part").read_bytes() == DATA
