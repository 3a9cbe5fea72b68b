"""A client that still receives the run's app is waited for, however slow its link is; one that only could is not."""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flwr.app import Message
from line_parts import WAIT_S, Lines, a_metric, echo_app, mac_of

from fedops_mqtt.line import wire
from fedops_mqtt.line.access import make_token
from fedops_mqtt.line.grid import BelowQuorumError, RunEndedError
from fedops_mqtt.line.identity import node_id_of
from fedops_mqtt.line.server import LineServer

SECRET = b"0123456789abcdef"
JOIN_S = 10.0
"""Longer than any pause of a download on a busy machine."""
APP = os.urandom(32 * 1024 * 1024)
"""More than the buffers of the two sockets hold."""
PATH = wire.APP_PATH + hashlib.sha256(APP).hexdigest()


@contextmanager
def download(server: LineServer, first: int = 0, mac: str = mac_of(1)) -> Iterator[socket.socket]:
    """Ask for the app from a byte on, over a connection that holds little."""
    host, _, port = server.address.rpartition(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        sock.settimeout(WAIT_S)
        sock.connect((host, int(port)))
        token = make_token(SECRET, "r1", mac)
        lines = (f"GET {PATH} HTTP/1.1", f"host: {host}", f"{wire.CLIENT_HEADER}: {mac}")
        more = (f"authorization: Bearer {token}", f"range: bytes={first}-", "", "")
        sock.sendall("\r\n".join(lines + more).encode())
        assert sock.recv(1)
        yield sock


def read_slowly(sock: socket.socket, is_over: threading.Event) -> None:
    """Take a little again and again: what the line sends meanwhile, it sends in many steps."""
    while not is_over.wait(0.05):
        for _ in range(4):
            assert sock.recv(16 * 1024)


@contextmanager
def a_slow_client(lines: Lines, server: LineServer, began: threading.Event) -> Iterator[None]:
    """One client receives the app, and joins once a wait of another run, which begins at the event, has timed out."""
    is_limit_over = threading.Event()

    def time_out() -> None:
        try:
            assert began.wait(WAIT_S)
            with pytest.raises(BelowQuorumError):
                lines.serve(run_id="r2", limits={"join_s": JOIN_S}).grid.get_node_ids()
        finally:
            is_limit_over.set()

    def fetch_and_join(sock: socket.socket) -> None:
        read_slowly(sock, is_limit_over)
        lines.join(server, echo_app(), token=make_token(SECRET, "r1", mac_of(1)))

    with download(server) as sock:
        threads = [threading.Thread(target=time_out), threading.Thread(target=fetch_and_join, args=(sock,))]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for thread in threads:
                thread.join()


def test_a_slow_download_is_not_time_in_which_a_client_could_have_joined(lines: Lines) -> None:
    server = lines.serve(join="fixed", run_secret=SECRET, app=APP, limits={"join_s": JOIN_S})
    began = threading.Event()
    with a_slow_client(lines, server, began):
        began.set()
        assert server.grid.get_node_ids() == [node_id_of(mac_of(1))]


@pytest.mark.long
def test_a_strategy_that_wants_more_clients_than_the_run_waits_for_a_download_too(lines: Lines) -> None:
    server = lines.serve(join="fixed", run_secret=SECRET, app=APP, limits={"join_s": JOIN_S})
    lines.join(server, echo_app(), mac=mac_of(2), token=make_token(SECRET, "r1", mac_of(2)))
    server.grid.wait_for_clients(1)
    began = threading.Event()
    with a_slow_client(lines, server, began):
        while len(nodes := server.grid.get_node_ids()) < 2:  # as `sample_nodes` of Flower's strategies asks
            began.set()
            time.sleep(0.1)
        replies = server.grid.send_and_receive([Message(a_metric(), node, "train") for node in nodes])
        assert all(reply.has_content() for reply in replies)


def test_who_takes_nothing_or_the_same_again_is_not_waited_for(lines: Lines) -> None:
    server = lines.serve(join="fixed", run_secret=SECRET, app=APP, limits={"join_s": 0.5})
    with download(server) as sock:
        for _ in range(64):
            assert sock.recv(16 * 1024)
    is_over = threading.Event()

    def ask_again() -> None:
        while not is_over.wait(0.01):
            with download(server, first=7):
                pass

    asking = threading.Thread(target=ask_again)
    asking.start()
    try:
        with pytest.raises(BelowQuorumError, match=r"after 0\.5 s"):
            server.grid.get_node_ids()
    finally:
        is_over.set()
        asking.join()


def test_the_limit_of_the_run_ends_the_wait_for_a_download(lines: Lines) -> None:
    server = lines.serve(join="fixed", run_secret=SECRET, app=APP, limits={"join_s": JOIN_S, "run_s": JOIN_S})
    is_over = threading.Event()
    with download(server) as sock:
        reading = threading.Thread(target=read_slowly, args=(sock, is_over))
        reading.start()
        try:
            with pytest.raises(RunEndedError, match="limit of 10 s"):
                server.grid.get_node_ids()
        finally:
            is_over.set()
            reading.join()
