"""Who is in the run, and how soon it shows: death, silence, drops, limits, stops, re-aiming."""

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import closing
from types import FrameType

import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from line_parts import WAIT_S, Gate, Lines, a_metric, ask, ask_in_thread, echo_app, mac_of

from fedops_mqtt.line import wire
from fedops_mqtt.line.access import make_token
from fedops_mqtt.line.client_session import RunEnd
from fedops_mqtt.line.grid import BelowQuorumError, RunEndedError
from fedops_mqtt.line.identity import node_id_of
from fedops_mqtt.line.runner import Joined, LineRunner
from fedops_mqtt.protocol import Outcome, ReasonCode, RunOutcome

NEVER_S = 3600.0
"""An interval after which nothing is awaited any more: what comes, came for another reason."""
PING_S = 2.0
"""A client is lost after two of them without an answer: longer than a busy machine keeps a healthy one waiting."""
LIMIT_S = 5.0
"""A limit that passes in its test: longer than what must come before it takes on a busy machine."""


def test_a_client_joins_answers_and_learns_that_the_run_is_over(lines: Lines) -> None:
    server = lines.serve()
    client = lines.join(server, echo_app())
    (reply,) = ask(server)
    assert reply.content["metrics"]["node"] == node_id_of(mac_of(1)) % 1000
    assert server.close(RunOutcome.COMPLETED, "all rounds done", linger_s=WAIT_S) == []
    end = client.end()
    assert (end.outcome, end.run_outcome, end.is_rejected) == (Outcome.FINISHED, RunOutcome.COMPLETED, False)
    member = lines.changes.wait("finished").member
    assert member.bytes_in > 0
    assert member.bytes_out > 0
    assert [p.phase.value for p in client.progress] == [
        "joining",
        "waiting",
        "downloading",
        "training",
        "uploading",
        "waiting",
    ]


def test_a_killed_training_process_leaves_its_round_at_once(lines: Lines) -> None:
    server = lines.serve(min_clients=2, limits={"ping_s": NEVER_S})
    victim = lines.spawn(server, mode="hang")
    lines.join(server, echo_app(), mac=mac_of(2))
    results = ask_in_thread(server)
    victim.wait_for("training")
    victim.process.kill()
    replies = results.get(timeout=WAIT_S)
    errors = [reply.error.reason for reply in replies if reply.has_error()]
    assert errors == [f"{mac_of(1)} lost: connection closed"]
    assert len(replies) == 2
    assert lines.changes.wait("lost").member.outcome is None


def test_a_silent_host_is_lost_within_three_pings_and_may_come_back(lines: Lines) -> None:
    server = lines.serve(limits={"ping_s": PING_S})
    client = lines.spawn(server, mode="echo")
    ask(server)
    os.kill(client.process.pid, signal.SIGSTOP)
    results = ask_in_thread(server)
    (reply,) = results.get(timeout=WAIT_S)
    assert "no answer to 2 pings" in reply.error.reason
    num_before = lines.changes.count("rejoined")
    os.kill(client.process.pid, signal.SIGCONT)
    lines.changes.wait("rejoined", count=num_before + 1)
    (reply,) = ask(server)
    assert reply.has_content()


def test_a_client_that_joins_again_and_falls_silent_owes_nothing_any_more(lines: Lines) -> None:
    """Neither its old control request nor a new one ends: nothing but the time shows that it has died."""
    server = lines.serve(limits={"ping_s": 1.0})
    body = json.dumps({"client_mac": mac_of(1), "instance": "hand", "attempt": 1}).encode()
    host, _, port = server.address.rpartition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=WAIT_S)) as control:
        control.request("POST", wire.JOIN_PATH, body=body)
        session = json.loads(control.getresponse().read())["session"]
        control.request("GET", wire.CONTROL_PATH, headers={wire.SESSION_HEADER: session})
        lines.changes.wait("joined")
        results = ask_in_thread(server)
        with closing(http.client.HTTPConnection(host, int(port), timeout=WAIT_S)) as again:
            again.request("GET", wire.NEXT_PATH, headers={wire.SESSION_HEADER: session})
            assert again.getresponse().read()
            again.request("POST", wire.JOIN_PATH, body=body)
            assert again.getresponse().read()
            (reply,) = results.get(timeout=WAIT_S)
    assert reply.error.reason == f"{mac_of(1)} lost: no control request within 3 s of its join"
    assert lines.changes.wait("lost").member.reason == "no control request within 3 s of its join"


def test_a_reply_that_comes_after_the_loss_still_counts_while_the_round_is_open(lines: Lines) -> None:
    server = lines.serve(min_clients=2, limits={"ping_s": PING_S})
    silent = lines.spawn(server, mode="ask")
    slow = Gate()
    lines.join(server, echo_app(slow), mac=mac_of(2))
    results = ask_in_thread(server)
    silent.wait_for("training")
    os.kill(silent.process.pid, signal.SIGSTOP)
    lines.changes.wait("lost")
    num_before = lines.changes.count("rejoined")
    os.kill(silent.process.pid, signal.SIGCONT)
    lines.changes.wait("rejoined", count=num_before + 1)
    silent.go_on()
    lines.changes.wait_phases("uploading", "waiting")
    slow.opened.set()
    replies = results.get(timeout=WAIT_S)
    assert [reply.has_content() for reply in replies] == [True, True]


def test_an_app_that_raises_is_an_error_for_the_strategy_and_a_failure_for_its_client(lines: Lines) -> None:
    def fail(message: Message, context: Context) -> None:
        raise ValueError("no data on this device")

    server = lines.serve(min_clients=2)
    failing = lines.join(server, echo_app(fail))
    lines.join(server, echo_app(), mac=mac_of(2))
    replies = ask(server)
    assert [r.error.reason for r in replies if r.has_error()] == ["ValueError: no data on this device"]
    assert failing.end().outcome is Outcome.FAILED
    assert failing.ended.is_set()
    failed = lines.changes.wait("failed").member
    assert (failed.outcome, failed.reason) == (Outcome.FAILED, "ValueError: no data on this device")
    assert server.grid.wait_for_clients(1) == [node_id_of(mac_of(2))]


@pytest.mark.parametrize("raised", [SystemExit(3), TypeError("ClientApp returned str, not a Message")])
def test_whatever_an_app_does_wrong_becomes_its_failure(lines: Lines, raised: BaseException) -> None:
    def wrong(message: Message, context: Context) -> None:
        raise raised

    server = lines.serve()
    client = lines.join(server, echo_app(wrong))
    (reply,) = ask(server)
    assert reply.error.reason == f"{type(raised).__name__}: {raised}"
    assert client.end().reason == reply.error.reason


def test_a_fault_outside_of_the_app_is_reported_as_what_it_is(lines: Lines) -> None:
    def fail(joined: Joined) -> Context:
        raise MemoryError("no room for a context")

    server, ends = lines.serve(), list[RunEnd]()
    runner = LineRunner(server_ip=server.address, client_mac=mac_of(1), instance="i1", attempt=1, on_end=ends.append)
    with pytest.raises(MemoryError):
        runner.run(echo_app(), fail)
    (end,) = ends
    told = lines.changes.wait("failed").member
    assert (end.outcome, told.outcome) == (Outcome.FAILED, Outcome.FAILED)
    assert end.reason.splitlines()[0] == (told.reason or "").splitlines()[0] == "MemoryError: no room for a context"


def test_a_dropped_client_is_answered_for_and_gets_a_stop(lines: Lines) -> None:
    server, gate = lines.serve(), Gate()
    client = lines.join(server, echo_app(gate))
    results = ask_in_thread(server)
    gate.wait_entered()
    server.drop(mac_of(1), Outcome.STOPPED, "stopped by the manager")
    (reply,) = results.get(timeout=WAIT_S)
    assert "stopped by the manager" in reply.error.reason
    assert client.ended.wait(WAIT_S), "told while the app still computes"
    gate.opened.set()
    end = client.end()
    assert (end.outcome, end.reason) == (Outcome.STOPPED, "stopped by the manager")
    again = lines.join(server, echo_app()).end()
    assert (again.is_rejected, again.outcome) == (True, Outcome.STOPPED)


def test_a_client_that_hangs_is_dropped_as_failed_after_the_round_limit(lines: Lines) -> None:
    server, gate = lines.serve(min_clients=2, limits={"round_s": LIMIT_S}), Gate()
    hanging = lines.join(server, echo_app(gate))
    lines.join(server, echo_app(), mac=mac_of(2))
    replies = ask(server)
    assert sorted(reply.has_error() for reply in replies) == [False, True]
    failed = lines.changes.wait("failed").member
    assert failed.reason == "no reply within the round limit of 5 s"
    assert hanging.ended.wait(WAIT_S)
    gate.opened.set()
    assert hanging.end().outcome is Outcome.FAILED


def test_the_round_limit_holds_for_pulled_messages_too(lines: Lines) -> None:
    server, gate = lines.serve(limits={"round_s": 0.2}), Gate()
    lines.join(server, echo_app(gate))
    (node,) = server.grid.get_node_ids()
    message = server.grid.create_message(a_metric(), "train", node, "1")
    ids = server.grid.push_messages([message])
    replies: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while not replies and time.monotonic() < deadline:
        replies = list(server.grid.pull_messages(ids))
    assert replies[0].has_error()
    gate.opened.set()


def test_a_strategys_own_timeout_leaves_the_client_in_the_run(lines: Lines) -> None:
    server, gate = lines.serve(), Gate()
    lines.join(server, echo_app(gate))
    (node,) = server.grid.get_node_ids()
    message = Message(a_metric(), node, "train")
    assert server.grid.send_and_receive([message], timeout=0.2) == []
    gate.opened.set()
    (reply,) = ask(server)
    assert reply.has_content()


def test_too_few_clients_end_the_run_with_the_names_of_those_who_left(lines: Lines) -> None:
    server = lines.serve(min_clients=2, max_clients=2, limits={"rejoin_s": 0.3})
    lines.join(server, echo_app(), mac=mac_of(2))
    victim = lines.spawn(server, mode="hang")
    lines.changes.wait("joined")
    lines.changes.wait("joined", mac=mac_of(2))
    assert len(server.grid.get_node_ids()) == 2
    victim.process.kill()
    lines.changes.wait("lost")
    with pytest.raises(BelowQuorumError) as caught:
        server.grid.get_node_ids()
    assert (caught.value.present, caught.value.needed) == (1, 2)
    assert f"{mac_of(1)} (connection closed)" in str(caught.value)


def test_no_client_at_all_ends_the_run_after_the_join_limit(lines: Lines) -> None:
    server = lines.serve(limits={"join_s": 0.2})
    with pytest.raises(BelowQuorumError, match=r"too few clients: 0 after 0.2 s, 1 needed"):
        server.grid.get_node_ids()


def test_a_client_that_has_ended_is_not_waited_for_where_no_other_may_join(lines: Lines) -> None:
    server = lines.serve(min_clients=2, max_clients=2, limits={"rejoin_s": WAIT_S})
    for number in (1, 2):
        lines.join(server, echo_app(), mac=mac_of(number))
    assert len(server.grid.get_node_ids()) == 2
    server.drop(mac_of(1), Outcome.FAILED, "bad data")
    with pytest.raises(BelowQuorumError, match=rf"too few clients: 1 left, 2 needed; absent: {mac_of(1)} \(bad data\)"):
        server.grid.get_node_ids()


def test_a_strategy_that_waits_for_more_than_our_minimum_is_ended_too(lines: Lines) -> None:
    server = lines.serve(limits={"join_s": LIMIT_S})
    lines.join(server, echo_app())
    with pytest.raises(BelowQuorumError, match="the strategy waits for more"):
        FedAvg(min_available_nodes=2).start(grid=server.grid, initial_arrays=ArrayRecord(), num_rounds=1)


def test_the_run_limit_ends_a_round(lines: Lines) -> None:
    server, gate = lines.serve(limits={"run_s": 2 * LIMIT_S}), Gate()
    lines.join(server, echo_app(gate))
    results = ask_in_thread(server)
    gate.wait_entered()  # in the round, not in the wait for clients, which the limit ends too
    error = results.get(timeout=WAIT_S)
    gate.opened.set()
    assert isinstance(error, RunEndedError)
    assert "over its limit of 10 s" in error.reason


def test_an_interrupt_ends_a_round_and_the_clients_are_stopped(lines: Lines) -> None:
    server, gate = lines.serve(), Gate()
    client = lines.join(server, echo_app(gate))
    results = ask_in_thread(server)
    gate.wait_entered()
    server.interrupt(RunOutcome.STOPPED, "by the user")
    assert isinstance(results.get(timeout=WAIT_S), RunEndedError)
    server.close(RunOutcome.STOPPED, "by the user", linger_s=WAIT_S)
    assert client.ended.wait(WAIT_S)
    gate.opened.set()
    end = client.end()
    assert (end.outcome, end.reason) == (Outcome.STOPPED, "run stopped: by the user")
    assert lines.changes.wait("stopped").member.outcome is Outcome.STOPPED


def test_a_stopped_runner_leaves_at_the_server_while_the_app_still_computes(lines: Lines) -> None:
    server, gate = lines.serve(limits={"ping_s": NEVER_S}), Gate()
    client = lines.join(server, echo_app(gate))
    results = ask_in_thread(server)
    gate.wait_entered()
    client.runner.stop("daemon shuts down")
    (reply,) = results.get(timeout=WAIT_S)
    assert "daemon shuts down" in reply.error.reason
    assert lines.changes.wait("stopped").member.reason == "daemon shuts down"
    gate.opened.set()
    assert client.end().outcome is Outcome.STOPPED


def test_a_runner_that_waits_for_work_stops_at_once(lines: Lines) -> None:
    server = lines.serve(limits={"poll_s": NEVER_S, "ping_s": NEVER_S})
    client = lines.join(server, echo_app())
    ask(server)
    client.runner.stop("enough")
    assert client.end().reason == "enough"


def test_a_higher_attempt_evicts_the_lower_one(lines: Lines) -> None:
    server, gate = lines.serve(), Gate()
    old = lines.join(server, echo_app(gate))
    results = ask_in_thread(server)
    gate.wait_entered()
    new = lines.join(server, echo_app(), attempt=2, instance="i2")
    (reply,) = results.get(timeout=WAIT_S)
    assert "replaced" in reply.error.reason
    assert old.ended.wait(WAIT_S)
    gate.opened.set()
    assert old.end().outcome is Outcome.STOPPED
    lines.changes.wait("joined", count=2)
    (reply,) = ask(server)
    assert reply.has_content()
    late = lines.join(server, echo_app(), attempt=1).end()
    assert (late.is_rejected, late.reason) == (True, "attempt 1 was replaced by attempt 2")
    assert not new.ended.is_set()


def test_a_client_moves_to_a_relaunched_server_with_its_state_and_its_work(lines: Lines) -> None:
    rounds_seen: list[int] = []
    gate = Gate()

    def count(message: Message, context: Context) -> None:
        before = context.state["n"]["n"] if "n" in context.state else 0  # type: ignore[index]
        context.state["n"] = MetricRecord({"n": before + 1})
        rounds_seen.append(before + 1)
        if before == 1:
            gate(message, context)

    old = lines.serve(launch=1)
    client = lines.join(old, echo_app(count), launch=1)
    ask(old)
    ask_in_thread(old)
    gate.wait_entered()
    new = lines.serve(launch=2)
    client.runner.redirect(new.address, 2)
    lines.changes.wait("joined", count=2)
    gate.opened.set()
    (reply,) = ask(new)
    assert reply.metadata.src_node_id == node_id_of(mac_of(1))
    assert rounds_seen == [1, 2, 3]
    client.runner.redirect(old.address, 1)
    (reply,) = ask(new)
    assert reply.has_content()


def test_a_client_waits_for_a_server_that_is_not_up_yet(lines: Lines, free_port: int) -> None:
    client = lines.join(f"127.0.0.1:{free_port}", echo_app())
    server = lines.serve(listen=f"127.0.0.1:{free_port}")
    assert ask(server)[0].has_content()
    assert not client.ended.is_set()


def test_a_server_that_never_comes_is_a_failure_with_its_address(lines: Lines, free_port: int) -> None:
    end = lines.join(f"127.0.0.1:{free_port}", echo_app(), join_s=0.3).end()
    assert end.outcome is Outcome.FAILED
    assert f"no FL server at 127.0.0.1:{free_port} within 0.3 s" in end.reason


def test_a_server_that_accepts_and_stays_silent_does_not_outlast_the_join_limit(lines: Lines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        end = lines.join(f"127.0.0.1:{mute.getsockname()[1]}", echo_app(), join_s=0.3).end()
    assert end.outcome is Outcome.FAILED
    assert "within 0.3 s" in end.reason


def test_a_server_that_does_not_come_back_is_a_failure_after_the_rejoin_limit(lines: Lines) -> None:
    server = lines.serve()
    client = lines.join(server, echo_app(), rejoin_s=0.3)
    ask(server)
    server._run_state.close = lambda gone, deadline: []  # type: ignore[method-assign]  # dies without a word
    server.close(RunOutcome.FAILED, "never said")
    end = client.end()
    assert (end.outcome, end.run_outcome) == (Outcome.FAILED, None)
    assert "within 0.3 s" in end.reason


def test_an_attempt_that_left_is_not_let_in_again(lines: Lines) -> None:
    server = lines.serve()
    client = lines.join(server, echo_app())
    ask(server)
    client.runner.stop("leaves", ReasonCode.INTERRUPTED)
    left = lines.changes.wait("stopped").member
    assert (left.reason, left.reason_code) == ("leaves", ReasonCode.INTERRUPTED)
    again = lines.join(server, echo_app(), attempt=1).end()
    assert (again.is_rejected, again.outcome, again.reason) == (True, Outcome.STOPPED, "leaves")


def test_a_wrong_token_or_run_is_rejected(lines: Lines) -> None:
    secret = b"0123456789abcdef"
    server = lines.serve(join="invited", run_secret=secret)
    wrong = lines.join(server, echo_app(), token="nonsense").end()
    assert (wrong.is_rejected, wrong.outcome) == (True, Outcome.FAILED)
    assert "token" in wrong.reason
    token = make_token(secret, "r1", mac_of(1))
    other = lines.join(server, echo_app(), token=token, run_id="r2").end()
    assert "serves run r1" in other.reason
    lines.join(server, echo_app(), token=token, run_id="r1")
    assert ask(server)[0].has_content()


def test_a_round_ends_with_its_last_reply_however_the_others_were_answered(lines: Lines) -> None:
    server, last = lines.serve(min_clients=3), Gate()
    lines.join(server, echo_app())
    lines.join(server, echo_app(last), mac=mac_of(2))
    dropped = Gate()
    lines.join(server, echo_app(dropped), mac=mac_of(3))
    nodes = server.grid.get_node_ids()
    ids = server.grid.push_messages([Message(a_metric(), node, "train") for node in nodes])
    last.wait_entered()
    dropped.wait_entered()
    lines.changes.wait_phases("uploading", "waiting")  # one reply is there before anybody waits for it
    woken = threading.Event()

    def wait() -> None:
        server._run_state.wait_for_replies(ids, time.monotonic() + NEVER_S)
        woken.set()

    threading.Thread(target=wait, daemon=True).start()
    server.drop(mac_of(3), Outcome.STOPPED, "told to")
    last.opened.set()
    dropped.opened.set()
    assert woken.wait(WAIT_S)
    assert [reply.has_content() for reply in server.grid.pull_messages(ids)].count(True) == 2


def test_a_client_outlasts_polls_that_bring_nothing(lines: Lines) -> None:
    server = lines.serve(limits={"poll_s": 0.05})
    client = lines.join(server, echo_app())
    ask(server)
    session = next(iter(server._run_state._sessions.values()))
    polls = session.polls
    deadline = time.monotonic() + WAIT_S
    while session.polls < polls + 3:
        assert time.monotonic() < deadline
        assert not client.ended.is_set()
        threading.Event().wait(0.01)
    assert ask(server)[0].has_content()


def waits_for_clients(frame: FrameType) -> bool:
    """Tell whether a thread waits for a condition, and does so for the grid."""
    callers = [each.f_code.co_name for each, _ in traceback.walk_stack(frame)]
    return callers[0] == "wait" and "wait_for_clients" in callers


class SignalledError(Exception):
    """Raised by a signal handler."""


def test_a_signal_that_another_thread_takes_ends_a_wait_of_the_main_thread(lines: Lines) -> None:
    """Python's handlers run in the main thread, which does not wake for a signal of another."""
    assert threading.current_thread() is threading.main_thread()
    server = lines.serve(min_clients=1)
    is_over = threading.Event()
    other = threading.Thread(target=is_over.wait)
    other.start()  # it takes what the main thread blocks from here on

    def raise_it(number: int, frame: object) -> None:
        raise SignalledError

    before = signal.signal(signal.SIGUSR1, raise_it)
    main_thread = threading.get_ident()

    def send_when_it_waits() -> None:
        while not waits_for_clients(sys._current_frames()[main_thread]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=send_when_it_waits)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        sender.start()
        with pytest.raises(SignalledError):
            server.grid.wait_for_clients(1)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)
        is_over.set()
        other.join()
        sender.join()
