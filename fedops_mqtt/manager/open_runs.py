"""The runs that are not archived, and what of them the journal does not hold yet; their statuses on the bus.

No action of a run is carried out before its `take_batch` was written.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fedops_mqtt.bus import BusError, Connection, StatusOwner
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.core.fleet import StatusView
from fedops_mqtt.core.run import Run, apply_all
from fedops_mqtt.core.run_member import Member, RunEvent, RunWaits
from fedops_mqtt.manager.journal import Batch, JournaledRun, JournalEvent
from fedops_mqtt.manager.run_record import count_members
from fedops_mqtt.manager.tasks import TaskConfig
from fedops_mqtt.protocol import (
    ClientMetrics,
    ClientStatus,
    ProtocolError,
    Roster,
    RunMember,
    RunStatus,
    ServerMetrics,
    ServerStatus,
    clip,
    topics,
    utc_now,
    with_clients,
)


def journal_events(before: Run, after: Run, events: Sequence[RunEvent], now: float) -> Iterator[JournalEvent]:
    """Yield the journal's rows for the step from `before` to `after`."""
    own = [event for event in events if not isinstance(event, ServerStatus | StatusView | RunWaits)]
    for event in own:
        detail = {name: getattr(event, name) for name in event.__slots__}
        mac = detail.pop("client_mac", None)
        yield _event(after, type(event).__name__, now, mac, detail)
    if _server_line(before.server) != _server_line(after.server) and after.server is not None:
        yield _event(after, "ServerSaid", now, None, _server_line(after.server))
    has_row = {getattr(event, "client_mac", None) for event in own}
    for mac, member in after.members.items():
        known = before.members.get(mac)
        if known is not member and mac not in has_row and _member_line(known) != _member_line(member):
            yield _event(after, "MemberSaid", now, mac, _member_line(member))


def note_client(status: ClientStatus, now: float) -> JournalEvent:
    """Return the journal's row for a client's change of status."""
    detail = {"status": status.status.value, "reason": status.reason, "instance": status.instance}
    return JournalEvent(at=now, kind="ClientSaid", task_id=status.task_id, client_mac=status.client_mac, detail=detail)


def _event(run: Run, kind: str, now: float, mac: str | None, detail: dict[str, Any]) -> JournalEvent:
    return JournalEvent(at=now, kind=kind, run_id=run.run_id, task_id=run.spec.task_id, client_mac=mac, detail=detail)


def _server_line(server: ServerStatus | None) -> dict[str, Any]:
    if server is None:
        return {}
    facts = {"launch": server.launch, "server_ip": server.server_ip, "reason": server.reason}
    return {"status": server.status.value, **facts}


def _member_line(member: Member | None) -> dict[str, Any]:
    if member is None:
        return {}
    return {"status": member.status.value, "attempt": member.attempt, "reason": member.reason}


_MAX_ROUND = 2**31 - 1
"""Of the journal's columns in PostgreSQL (32-bit integers)."""


WRITE_WAIT_S = 1.0
"""A reader's; a turn of the manager takes milliseconds while its database is well."""


class OpenRuns:
    """Open runs by id; `listener` is called with the id of each run that changes."""

    def __init__(self, runs: Sequence[JournaledRun]) -> None:
        self.listener: Callable[[str], None] = lambda run_id: None
        self._runs = {each.run.run_id: each.run for each in runs}
        self._kept = {each.run.run_id: each for each in runs}
        self._batch = Batch()
        self._taken = Batch()
        self._taken.written.set()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def __getitem__(self, run_id: str) -> Run:
        return self._runs[run_id]

    def get(self, run_id: str) -> Run | None:
        """Return an open run."""
        return self._runs.get(run_id)

    def secret(self, run_id: str) -> bytes:
        """Return a run's secret; empty for an adopted one."""
        return self._kept[run_id].secret if run_id in self._kept else b""

    def task(self, run_id: str) -> TaskConfig | None:
        """Return a run's task as it was when the run began; None where an older program did not store it."""
        return self._kept[run_id].task if run_id in self._kept else None

    def of_task(self, task_id: str) -> list[Run]:
        """Return a task's open runs, ended ones included."""
        return [run for run in self._runs.values() if run.spec.task_id == task_id]

    def active(self, task_id: str) -> Run | None:
        """Return the run of a task that has not ended; there is at most one."""
        return next((run for run in self.of_task(task_id) if not run.has_ended), None)

    def add(self, journaled: JournaledRun) -> None:
        """Add a run that is in the journal."""
        run_id = journaled.run.run_id
        self._runs[run_id], self._kept[run_id] = journaled.run, journaled
        self.listener(run_id)

    def drop(self, run_id: str) -> None:
        """Remove a run that is archived."""
        self._runs.pop(run_id, None)
        self._kept.pop(run_id, None)

    def apply(self, run_id: str, events: Sequence[RunEvent], now: float) -> None:
        """Apply events to a run, and add the changes to the next batch."""
        before = self._runs.get(run_id)
        if before is None:
            return
        after = apply_all(before, events, now)
        if after == before:
            return
        self._runs[run_id] = after
        written = self._batch.runs[run_id][0] if run_id in self._batch.runs else before
        self._batch.runs[run_id] = (written, after)
        self._batch.events.extend(journal_events(before, after, events, now))
        self.listener(run_id)

    def note(self, event: JournalEvent) -> None:
        """Add an event that belongs to no run to the next batch."""
        self._batch.events.append(event)

    def note_round(self, metrics: ServerMetrics, now: float) -> None:
        """Add a round's metrics to the next batch, if its run is open and of the server's task."""
        run = self._runs.get(metrics.run_id)
        if run is not None and run.spec.task_id == metrics.task_id and max(metrics.round, metrics.launch) <= _MAX_ROUND:
            columns = {"run_id", "launch", "round", "metrics", "duration_s", "bytes_in", "bytes_out", "gl_model"}
            self._batch.rounds.append({**metrics.model_dump(include=columns), "at": now})

    def note_metrics(self, metrics: ClientMetrics, now: float) -> None:
        """Add a client's metrics to the next batch, under a run only where the client is a member of it.

        Those of a training without a manager's run are stored without a run; metrics under another client's run are
        dropped.
        """
        run = self._runs.get(metrics.run_id or "")
        if run is not None and (run.spec.task_id != metrics.task_id or metrics.client_mac not in run.members):
            return
        row = metrics.model_dump(include={"task_id", "client_mac", "round", "values"})
        row["run_id"] = run.run_id if run is not None else None
        self._batch.client_metrics.append({**row, "kind": metrics.kind.value, "at": now})

    def take_batch(self) -> Batch:
        """Return the batch that has to be written now, and begin a new one; the caller then sets its `written`."""
        batch, self._batch = self._batch, Batch()
        if batch:
            self._taken = batch
        return batch

    async def wait_written(self) -> None:
        """Wait until the database has what was noted so far, at most `WRITE_WAIT_S`.

        Runs are read as they are, their history from the database: who saw a run end finds its last round.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for((self._batch or self._taken).written.wait(), WRITE_WAIT_S)


logger = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.2
"""Between two statuses of the same run; people read them."""

PAUSE_RATIO = 9
"""Pause after a publication, as a multiple of its own duration: a run of thousands of clients, whose roster of some
hundred kB changes all the time, takes a tenth of the manager's time at most."""

MAX_INTERVAL_S = 2.0

RETRY_S = 2.0

MAX_MEMBER_REASON = 200
"""Characters; a roster of thousands of failures must fit a message. The client's own status has the whole reason."""


class RunStatusPublisher:
    """Publishes the statuses of the open runs under the manager's own epoch."""

    def __init__(self, open_runs: OpenRuns, *, term: int) -> None:
        self._open_runs = open_runs
        self._term = term
        self._changed: dict[str, None] = {}
        self._rosters: dict[str, Roster] = {}
        self._is_due = asyncio.Event()

    def changed(self, run_id: str) -> None:
        """Publish a run's status soon."""
        self._changed[run_id] = None
        self._is_due.set()

    def publish_all(self) -> None:
        """Publish every open run's status soon: the connection is new, or a topic was cleared."""
        self._rosters = {run_id: roster for run_id, roster in self._rosters.items() if run_id in self._open_runs}
        for run in self._open_runs:
            self.changed(run.run_id)

    async def run(self, connection: Connection, owner: StatusOwner) -> None:
        """Publish, for ever."""
        repeat_at = time.monotonic() + owner.heartbeat_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(repeat_at - time.monotonic()):
                    await self._is_due.wait()
            if time.monotonic() >= repeat_at:
                repeat_at = time.monotonic() + owner.heartbeat_s
                self.publish_all()
            self._is_due.clear()
            began = time.monotonic()
            is_complete = await self._publish(connection, owner)
            cost_s = time.monotonic() - began
            pause_s = min(max(MIN_INTERVAL_S, PAUSE_RATIO * cost_s), MAX_INTERVAL_S)
            await asyncio.sleep(pause_s if is_complete else RETRY_S)

    async def _publish(self, connection: Connection, owner: StatusOwner) -> bool:
        """Publish the runs that changed; False when one could not be published."""
        changed, self._changed = self._changed, {}
        for run_id in changed:
            run = self._open_runs.get(run_id)
            if run is None or not connection.is_connected:
                continue  # after a reconnect all are published
            try:
                # On a thread: of a run of 100,000 clients it is some 0.1 s.
                status = await asyncio.to_thread(self.describe, run, owner, owner.next_stamp())
                await connection.publish(topics.run_status(status.task_id, run_id), status)
            except ProtocolError as error:  # tried again when it has changed: it may fit then
                logger.error("a run's status fits no message", extra={"run_id": run_id, "problem": str(error)})
            except BusError as error:
                logger.warning("could not publish a run's status", extra={"run_id": run_id, "problem": str(error)})
                self.changed(run_id)
        return not self._changed

    def describe(self, run: Run, owner: StatusOwner, stamp: Stamp) -> RunStatus:
        """Return a run's status."""
        server = run.server
        status = RunStatus(
            instance=owner.instance,
            epoch=stamp.epoch,
            seq=stamp.seq,
            at=utc_now(),
            heartbeat_s=owner.heartbeat_s,
            run_id=run.run_id,
            task_id=run.spec.task_id,
            status=run.status,
            outcome=run.outcome,
            reason=clip(run.reason),
            term=self._term,
            launch=run.launch,
            server_ip=run.server_ip,
            round=server.round if server else 0,
            num_rounds=run.num_rounds,
            min_clients=run.spec.min_clients,
            gl_model=server.gl_model if server else 0,
            metrics=server.metrics if server else {},
            model_path=server.model_path if server else None,
            clients_by_status=count_members(run),
            created_at=datetime.fromtimestamp(run.created_at, UTC),
            ended_at=datetime.fromtimestamp(run.ended_at, UTC) if run.ended_at is not None else None,
        )
        part = self._rosters.setdefault(run.run_id, Roster()).part(run.members)
        roster = {
            mac: RunMember(status=member.status, attempt=member.attempt, reason=clip(member.reason, MAX_MEMBER_REASON))
            for mac, member in part.items()
        }
        return with_clients(status, roster)
