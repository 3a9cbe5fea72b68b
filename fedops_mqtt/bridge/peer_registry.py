"""What the bridge's endpoints read and report: who calls, which port is given, what a FedOps server has reported."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedops_mqtt.bridge.classic import ClassicOptions, ClassicRun, ClassicServer, load_runs, new_run_id
from fedops_mqtt.bridge.client_proxy import ClientProxy
from fedops_mqtt.bridge.peer_state import OnlineAnswer, PeerState
from fedops_mqtt.protocol import MetricsCutter, MetricsKind, count_of, number_of
from fedops_mqtt.runtime.machine import join_address, split_address
from fedops_mqtt.training.pipe import MetricsReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What a request shows of its sender."""

    host: str | None = None
    client_mac: str | None = None
    """The user name in its URL."""
    own_mac: str | None = None
    """The MAC in its body."""
    task_id: str | None = None


def find_peer(peers: Sequence[PeerState], caller: Caller, *, expected: Callable[[PeerState], bool]) -> PeerState | None:
    """Return the client that calls; None where it cannot be known."""
    if caller.client_mac is not None:
        return next((peer for peer in peers if peer.client_mac == caller.client_mac), None)
    found = [peer for peer in peers if caller.task_id in (None, peer.task_id)]
    for sieve in (
        lambda peer: caller.own_mac in (peer.own_mac, peer.client_mac),
        lambda peer: caller.host in peer.hosts,
        expected,
    ):
        if len(found) > 1:
            found = list(filter(sieve, found)) or found
    return found[0] if len(found) == 1 else None


logger = logging.getLogger(__name__)

MakeProxy = Callable[[PeerState], ClientProxy]


class PeerRegistry:
    """All that the bridge serves. `open` it within the task group whose tasks it starts.

    `server_at` is `host:port` of FedOps' servers; an empty host means wherever a server's call comes from.
    """

    def __init__(self, *, classic: ClassicOptions, server_at: str, make_proxy: MakeProxy) -> None:
        self._peers: list[PeerState] = []
        self.cutter = MetricsCutter(logger.warning)
        self._classic = classic
        self._server_at = server_at
        self._make_proxy = make_proxy
        self._proxies: dict[ClientProxy, asyncio.Task[None]] = {}
        self._servers: dict[str, ClassicServer] = {}
        self._group: asyncio.TaskGroup | None = None

    def open(self, group: asyncio.TaskGroup) -> None:
        """Start what is known already: runs of FedOps servers that an earlier bridge served."""
        self._group = group
        for run in load_runs(self._classic.state_dir):
            self._serve_server(run)

    def close(self) -> None:
        """Let everything go; the tasks end by themselves when every goodbye is published."""
        for proxy, task in self._proxies.items():
            if not proxy.close():
                task.cancel()
        for server in self._servers.values():
            server.leave()

    def add(self, peer_state: PeerState) -> ClientProxy:
        """Publish for one more FedOps client."""
        assert self._group is not None
        proxy = self._make_proxy(peer_state)
        self._peers.append(peer_state)
        self._proxies[proxy] = self._group.create_task(proxy.run(), name=f"client-{peer_state.name}")
        return proxy

    # Clients

    def find(self, caller: Caller, *, expected: Callable[[PeerState], bool]) -> PeerState | None:
        """Return the client that calls."""
        return find_peer(self._peers, caller, expected=expected)

    def _of_mac(self, own_mac: str) -> PeerState | None:
        """Return the client that reports this MAC of itself."""
        return next((peer for peer in self._peers if own_mac in (peer.own_mac, peer.client_mac)), None)

    def client_out(self, peer_state: PeerState) -> None:
        """A client leaves."""
        self._proxy_of(peer_state).leave()

    async def register(self, answer: OnlineAnswer, *, host: str | None) -> None:
        """A client manager reports how its client is; one that the bridge polls itself needs no report."""
        peer_state = self._of_mac(answer.client_mac)
        if peer_state is None:
            logger.info("a FedOps client manager registered its client", extra={"client_mac": answer.client_mac})
            peer_state = PeerState(name=answer.client_mac, peer=None)
            self.add(peer_state)
        if peer_state.peer is None:
            peer_state.hosts = frozenset({host}) if host else peer_state.hosts
            await self._proxy_of(peer_state).register(answer)

    async def port_for(self, caller: Caller) -> int | None:
        """Return the port that a client shall train at."""
        peer_state = self.find(caller, expected=lambda peer: peer.has_start_pending)
        server = self._servers.get(caller.task_id or "")
        wanted = peer_state.wanted if peer_state is not None else None
        if peer_state is not None and wanted is not None:
            await peer_state.note_asked()
        elif server is not None:
            wanted = server.known.server_ip
        return split_address(wanted)[1] if wanted else None

    def _proxy_of(self, peer_state: PeerState) -> ClientProxy:
        return next(proxy for proxy in self._proxies if proxy.peer_state is peer_state)

    # FedOps' FL servers

    async def server_ready(self, task_id: str, *, host: str, gl_model: int) -> None:
        """A FedOps server has been started for a run of this task."""
        known = self._open_server(task_id)
        if known is not None:
            known.note_problem("another FedOps server was started for this task")
            known.note_end()
            await known.is_closed.wait()
        server_ip = join_address(*split_address(self._server_at, default_host=host))
        self._serve_server(ClassicRun(task_id=task_id, run_id=new_run_id(), server_ip=server_ip, gl_model=gl_model))

    def server_problem(self, task_id: str) -> None:
        """A FedOps server has reported that it is not ready any more, which it does of an error."""
        server = self._servers.get(task_id)
        if server is not None:
            server.note_problem("the FedOps server reported an error (FLSeReady false); its log has it")

    def server_round(self, task_id: str, fields: Mapping[str, Any]) -> bool:
        """A FedOps server has evaluated a round."""
        server = self._open_server(task_id)
        if server is None:
            return False
        took = number_of(fields.get("run_time_by_round"))
        server.note_evaluation(
            round_=count_of(fields.get("round")),
            metrics=server_numbers(fields, self.cutter),
            duration_s=None if took is None else float(took),
        )
        return True

    def server_rounds_done(self, task_id: str) -> bool:
        """A FedOps server has done its last round."""
        server = self._open_server(task_id)
        if server is not None:
            server.note_rounds_done()
        return server is not None

    def server_ends(self, task_id: str) -> None:
        """A FedOps server ends."""
        server = self._open_server(task_id)
        if server is not None:
            server.note_end()

    def server_view(self, task_id: str, own_mac: str | None) -> dict[str, Any]:
        """Return FedOps' `ServerStatus`: for a device, ready means that this device shall start."""
        peer_state = self._device(task_id, own_mac)
        server = self._servers.get(task_id)
        if own_mac is None:
            is_ready = self._open_server(task_id) is not None
            gl_model = server.known.gl_model if server is not None else 0
        else:
            is_ready = peer_state is not None and peer_state.has_start_pending
            gl_model = peer_state.gl_model if peer_state is not None else 0
        return {
            "S3_bucket": "",
            "Last_GL_Model": "",
            "Latest_GL_Model": "",
            "FLServer_start": "",
            "Server_manager_start": "",
            "FLSeReady": is_ready,
            "GL_Model_V": gl_model,
            "Task_status": _task_status(peer_state) if peer_state is not None else None,
        }

    def _open_server(self, task_id: str) -> ClassicServer | None:
        server = self._servers.get(task_id)
        return None if server is None or server.is_over else server

    def _device(self, task_id: str, own_mac: str | None) -> PeerState | None:
        peer_state = self._of_mac(own_mac) if own_mac is not None else None
        return peer_state if peer_state is not None and peer_state.task_id == task_id else None

    def _serve_server(self, run: ClassicRun) -> None:
        assert self._group is not None
        logger.info("serves a FedOps server", extra={"task_id": run.task_id, "server_ip": run.server_ip})
        self._servers[run.task_id] = server = ClassicServer(run, self._classic)
        self._group.create_task(server.run(), name=f"server-{run.task_id}")


def _task_status(peer_state: PeerState) -> dict[str, Any]:
    return {
        "FL_task_ID": peer_state.task_id,
        "Device_mac": peer_state.own_mac,
        "Device_hostname": peer_state.client_name,
        "Device_online": peer_state.is_here,
        "Device_training": peer_state.is_training,
    }


CLIENT_KINDS = {
    "train_result": MetricsKind.TRAIN_RESULT,
    "test_result": MetricsKind.TEST_RESULT,
    "client_time_result": MetricsKind.TIME_RESULT,
    "client_system": MetricsKind.SYSTEM,
    "xai_result": MetricsKind.DATA,
}
"""What a FedOps client puts to `client_perf/KIND/TASK` (FedOps client_api.ClientServerAPI), and what it is here."""

_ENVELOPE = ("fl_task_id", "client_mac", "round", "gl_model_v")
"""In the message around the numbers already."""


class ReportError(ValueError):
    """A performance report is no JSON object."""


def parse_report(body: bytes) -> dict[str, Any]:
    """Return the fields of a report.

    Raises:
        ReportError: it has none.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ReportError(f"expected a JSON object, got {type(fields).__name__}")
    return fields


def client_report(kind: MetricsKind, fields: Mapping[str, Any], cutter: MetricsCutter) -> MetricsReport:
    """Return a client's report as its daemon sends it; what is nested becomes JSON text."""
    plain = {
        name: json.dumps(value) if isinstance(value, list | dict) else value
        for name, value in fields.items()
        if name not in _ENVELOPE
    }
    return MetricsReport(kind=kind, round=count_of(fields.get("round")), values=cutter.cut(plain))


def server_numbers(fields: Mapping[str, Any], cutter: MetricsCutter) -> dict[str, float]:
    """Return the numbers of a server's evaluation, FedOps' own bookkeeping left out."""
    left_out = {*_ENVELOPE, "run_time_by_round"}
    return cutter.cut_numbers(
        {name: value for name, value in fields.items() if name not in left_out and not isinstance(value, bool)}
    )
