"""A line on loopback with real sockets, and clients on it: threads where only the talk matters, processes for death."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedops_mqtt.line.client_session import RunEnd
from fedops_mqtt.line.members import MemberChange
from fedops_mqtt.line.runner import LineRunner
from fedops_mqtt.line.server import LineServer
from fedops_mqtt.line.wire import LineLimits

WAIT_S = 300.0
"""Means "hangs", on a machine ten times slower too."""
SCRIPT = Path(__file__).with_name("line_client.py")


def mac_of(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


class Changes:
    """What a server said about its members; wait for what must come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.seen: list[MemberChange] = []

    def __call__(self, change: MemberChange) -> None:
        with self._changed:
            self.seen.append(change)
            self._changed.notify_all()

    def wait(self, kind: str, mac: str = mac_of(1), count: int = 1) -> MemberChange:
        def found() -> list[MemberChange]:
            return [change for change in self.seen if change.kind == kind and change.member.mac == mac]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, WAIT_S), f"no {kind} in {self.seen}"
            return found()[count - 1]

    def count(self, kind: str, mac: str = mac_of(1)) -> int:
        with self._changed:
            return sum(change.kind == kind and change.member.mac == mac for change in self.seen)

    def wait_phases(self, *phases: str, mac: str = mac_of(1)) -> None:
        """Wait until a member has gone through these phases, in this order."""

        def has_all() -> bool:
            said = (change.member.phase for change in self.seen if change.member.mac == mac)
            return all(phase in said for phase in phases)  # `in` uses the iterator up: a subsequence

        with self._changed:
            assert self._changed.wait_for(has_all, WAIT_S), f"not {phases} in {self.seen}"


class ThreadClient:
    """A LineRunner in a thread."""

    def __init__(
        self, address: str, app: ClientApp, *, mac: str = mac_of(1), context: Any = None, **options: Any
    ) -> None:
        values = {"instance": "i1", "attempt": 1, "join_s": WAIT_S, "rejoin_s": WAIT_S, **options}
        self.progress: list[Any] = []
        self.answered: list[Any] = []
        self.ended = threading.Event()
        self.runner = LineRunner(
            server_ip=address,
            client_mac=mac,
            on_progress=self.progress.append,
            on_answered=self.answered.append,
            on_end=lambda end: self.ended.set(),
            **values,
        )
        self._result: queue.Queue[RunEnd] = queue.Queue()
        arguments = (app,) if context is None else (app, context)
        self._thread = threading.Thread(target=lambda: self._result.put(self.runner.run(*arguments)), daemon=True)
        self._thread.start()

    def end(self, timeout_s: float = WAIT_S) -> RunEnd:
        return self._result.get(timeout=timeout_s)


class ProcessClient:
    """tests/integration/line/line_client.py as a process: says JSON lines."""

    def __init__(self, address: str, *, mac: str = mac_of(1), **options: Any) -> None:
        job = {"server_ip": address, "client_mac": mac, "instance": "i1", "attempt": 1, **options}
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def wait_for(self, key: str) -> Any:
        """Read lines until one has `key`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if key in (said := json.loads(line)):
                return said[key]
        raise AssertionError(f"process ended without saying {key}")

    def go_on(self) -> None:
        """Let a client in mode `ask` answer."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Lines:
    """Makes servers and clients, and ends them all."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.changes = Changes()

    def serve(self, **options: Any) -> LineServer:
        limits = {"join_s": WAIT_S, "round_s": WAIT_S, "ping_s": 10.0, "poll_s": 2.0, **options.pop("limits", {})}
        values = {"run_id": "r1", "join": "open", "on_member": self.changes, **options}
        return self._stack.enter_context(LineServer(limits=LineLimits(**limits), **values))

    def join(self, server: LineServer | str, app: ClientApp, **options: Any) -> ThreadClient:
        address = server if isinstance(server, str) else server.address
        client = ThreadClient(address, app, **options)
        self._stack.callback(client.runner.stop, "test is over")
        return client

    def spawn(self, server: LineServer, **options: Any) -> ProcessClient:
        client = ProcessClient(server.address, **options)
        self._stack.callback(client.close)
        return client


def echo_app(on_train: Callable[[Message, Context], None] = lambda message, context: None) -> ClientApp:
    """An app that sends back what it got, after `on_train`."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        on_train(message, context)
        content = RecordDict(dict(message.content))
        content["metrics"] = MetricRecord({"num-examples": 1, "node": context.node_id % 1000})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.5})}), reply_to=message)

    return app


class Gate:
    """A train function that says it is in, and waits to be let out."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, message: Message, context: Context) -> None:
        self.entered.release()
        assert self.opened.wait(WAIT_S)

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=WAIT_S)


def a_metric() -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"x": 1})})


def ask(server: LineServer, content: RecordDict | None = None, nodes: list[int] | None = None) -> list[Message]:
    """One round by hand: the same content to all."""
    content = content if content is not None else a_metric()
    nodes = server.grid.get_node_ids() if nodes is None else nodes
    return server.grid.send_and_receive([Message(content, node, "train") for node in nodes])


def ask_in_thread(server: LineServer, content: RecordDict | None = None) -> "queue.Queue[Any]":
    """One round by hand in a thread; the queue gets the replies, or the error."""
    results: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            results.put(ask(server, content))
        except BaseException as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    return results
