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


def find_peer(links: Sequence[PeerState], caller: Caller, *, expected: Callable[[PeerState], bool]) -> PeerState | None:
    """Return who calls; None where it cannot be known."""
    if caller.client_mac is not None:
        return next((link for link in links if link.client_mac == caller.client_mac), None)
    found = [link for link in links if caller.task_id in (None, link.task_id)]
    for sieve in (
        lambda link: caller.own_mac in (link.own_mac, link.client_mac),
        lambda link: caller.host in link.hosts,
        expected,
    ):
        if len(found) > 1:
            found = list(filter(sieve, found)) or found
    return found[0] if len(found) == 1 else None


logger = logging.getLogger(__name__)

MakePresence = Callable[[PeerState], ClientProxy]


class PeerRegistry:
    """All that the bridge serves. `open` it within the task group whose tasks it starts.

    `server_at` is `host:port` of FedOps' servers; an empty host means wherever a server's call comes from.
    """

    def __init__(self, *, classic: ClassicOptions, server_at: str, make_presence: MakePresence) -> None:
        self._links: list[PeerState] = []
        self.cutter = MetricsCutter(logger.warning)
        self._classic = classic
        self._server_at = server_at
        self._make_presence = make_presence
        self._presences: dict[ClientProxy, asyncio.Task[None]] = {}
        self._servers: dict[str, ClassicServer] = {}
        self._group: asyncio.TaskGroup | None = None

    def open(self, group: asyncio.TaskGroup) -> None:
        """Start what is known already: runs of FedOps servers that an earlier bridge served."""
        self._group = group
        for run in load_runs(self._classic.state_dir):
            self._serve_server(run)

    def close(self) -> None:
        """Let everything go; the tasks end by themselves when every goodbye is published."""
        for presence, task in self._presences.items():
            if not presence.close():
                task.cancel()
        for server in self._servers.values():
            server.leave()

    def add(self, link: PeerState) -> ClientProxy:
        """Publish for one more FedOps client."""
        assert self._group is not None
        presence = self._make_presence(link)
        self._links.append(link)
        self._presences[presence] = self._group.create_task(presence.run(), name=f"client-{link.name}")
        return presence

    # Clients

    def find(self, caller: Caller, *, expected: Callable[[PeerState], bool]) -> PeerState | None:
        """Return who calls."""
        return find_peer(self._links, caller, expected=expected)

    def _of_mac(self, own_mac: str) -> PeerState | None:
        """Return the client that reports this MAC of itself."""
        return next((link for link in self._links if own_mac in (link.own_mac, link.client_mac)), None)

    def client_out(self, link: PeerState) -> None:
        """A client leaves."""
        self._presence_of(link).leave()

    async def register(self, answer: OnlineAnswer, *, host: str | None) -> None:
        """A client manager reports how its client is; one that the bridge polls itself needs no report."""
        link = self._of_mac(answer.client_mac)
        if link is None:
            logger.info("a FedOps client manager registered its client", extra={"client_mac": answer.client_mac})
            link = PeerState(name=answer.client_mac, peer=None)
            self.add(link)
        if link.peer is None:
            link.hosts = frozenset({host}) if host else link.hosts
            await self._presence_of(link).register(answer)

    async def port_for(self, caller: Caller) -> int | None:
        """Return the port that a client shall train at."""
        link = self.find(caller, expected=lambda link: link.has_start_pending)
        server = self._servers.get(caller.task_id or "")
        wanted = link.wanted if link is not None else None
        if link is not None and wanted is not None:
            await link.note_asked()
        elif server is not None:
            wanted = server.known.server_ip
        return split_address(wanted)[1] if wanted else None

    def _presence_of(self, link: PeerState) -> ClientProxy:
        return next(presence for presence in self._presences if presence.link is link)

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
        link = self._device(task_id, own_mac)
        server = self._servers.get(task_id)
        if own_mac is None:
            is_ready = self._open_server(task_id) is not None
            gl_model = server.known.gl_model if server is not None else 0
        else:
            is_ready = link is not None and link.has_start_pending
            gl_model = link.gl_model if link is not None else 0
        return {
            "S3_bucket": "",
            "Last_GL_Model": "",
            "Latest_GL_Model": "",
            "FLServer_start": "",
            "Server_manager_start": "",
            "FLSeReady": is_ready,
            "GL_Model_V": gl_model,
            "Task_status": _task_status(link) if link is not None else None,
        }

    def _open_server(self, task_id: str) -> ClassicServer | None:
        server = self._servers.get(task_id)
        return None if server is None or server.is_over else server

    def _device(self, task_id: str, own_mac: str | None) -> PeerState | None:
        link = self._of_mac(own_mac) if own_mac is not None else None
        return link if link is not None and link.task_id == task_id else None

    def _serve_server(self, run: ClassicRun) -> None:
        assert self._group is not None
        logger.info("serves a FedOps server", extra={"task_id": run.task_id, "server_ip": run.server_ip})
        self._servers[run.task_id] = server = ClassicServer(run, self._classic)
        self._group.create_task(server.run(), name=f"server-{run.task_id}")


def _task_status(link: PeerState) -> dict[str, Any]:
    return {
        "FL_task_ID": link.task_id,
        "Device_mac": link.own_mac,
        "Device_hostname": link.client_name,
        "Device_online": link.is_here,
        "Device_training": link.is_training,
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
