"""The manager's loop: take in all events, apply them, plan once, write the journal, act.

The order is the guarantee: no action is carried out before it is in the journal.
"""

import asyncio
import logging
import time

from fedops_mqtt.bus import BusError
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import RunWaits, StopSent
from fedops_mqtt.core.run_plan import Action, EndServer, plan, waits_for
from fedops_mqtt.manager.actions import Executor
from fedops_mqtt.manager.bus_reader import needs_watching
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.open_runs import RunStatusPublisher
from fedops_mqtt.manager.run_service import RunService
from fedops_mqtt.manager.servers import Servers
from fedops_mqtt.protocol import Topic, topics

logger = logging.getLogger(__name__)

TICK_S = 0.25
"""Longest wait between two turns while a run is open; limits are counted in seconds."""

IDLE_TICK_S = 1.0

MAX_PAUSE_S = 0.25
"""Longest pause after a turn. A turn over thousands of clients is followed by a pause as long as itself: all messages
that arrive meanwhile cost one plan instead of hundreds."""

BURST = 20
"""Events within `BURST_LOOK_S` that count as a burst: thousands of clients came, were triggered or were lost."""

BURST_LOOK_S = 0.01

MAX_BURST_S = 0.5
"""Longest wait for the end of a burst: the fleet's state is brought up to date before plans and the journal use the
loop. A peer that floods the bus delays them by no more."""

MAX_STEPS = 4
"""Plans in one turn: a chosen client is triggered by the next plan; more steps would be a plan without an end."""


class Manager:
    """One leading manager's loop; `app` builds it and owns the lives of its parts."""

    def __init__(
        self,
        context: ManagerContext,
        *,
        status_publisher: RunStatusPublisher,
        servers: Servers,
        executor: Executor,
        run_service: RunService,
    ) -> None:
        self._context = context
        self._status_publisher = status_publisher
        self._servers = servers
        self._executor = executor
        self._run_service = run_service
        self._num_received = 0

    @property
    def fleet(self) -> Fleet:
        """The clients, servers and runs on the bus."""
        return self._context.bus_reader.fleet

    async def listen(self) -> None:
        """Apply the bus's events, for ever: the fleet is up to date even while the journal is written."""
        while True:
            events = await self._context.connection.drain()
            self._num_received += len(events)
            if self._context.bus_reader.apply(events, self._context.clock.now()):
                self._status_publisher.publish_all()
            self._context.event_queue.wake()

    async def run(self) -> None:
        """Resume the runs of an earlier manager, then take turns, for ever."""
        for run in self._context.open_runs:
            if run.launch > 0 and run.exited_at is None and not run.spec.is_adopted:
                launches = await self._context.journal.call(self._context.journal.list_launches, run.run_id)
                open_runs = self._context.open_runs
                self._servers.resume(run, launches, open_runs.secret(run.run_id), open_runs.task(run.run_id))
        while True:
            await self.turn(TICK_S if len(self._context.open_runs) else IDLE_TICK_S)

    async def turn(self, timeout_s: float) -> None:
        """Wait for events, at most `timeout_s`, and do what follows from them and from the time."""
        num_received = self._num_received
        reports = await self._context.event_queue.take(timeout_s)
        await self._await_end_of_burst(num_received)
        began = time.monotonic()
        now = self._context.clock.now()
        self._context.bus_reader.settle(now)
        for run_id, event in reports:
            self._context.open_runs.apply(run_id, [event], now)
        if self._context.bus_reader.unknown_servers:
            await self._run_service.adopt_servers(self._context.bus_reader.take_unknown_servers())
        await self._plan_and_act(now)
        self._context.events.note_clients(self._context.bus_reader.take_changed(), self.fleet)
        self._probe(now)
        await asyncio.sleep(min(time.monotonic() - began, MAX_PAUSE_S))

    async def _await_end_of_burst(self, num_received: int) -> None:
        until = time.monotonic() + MAX_BURST_S
        while self._num_received - num_received >= BURST and time.monotonic() < until:
            num_received = self._num_received
            await asyncio.sleep(BURST_LOOK_S)

    async def _plan_and_act(self, now: float) -> None:
        """Plan until no event follows, write all of them at once, and only then act."""
        self._context.bus_reader.settle(now)
        for run in self._context.open_runs:
            if not run.has_ended and (waits := waits_for(run, self.fleet)) != run.reason:
                self._context.open_runs.apply(run.run_id, [RunWaits(waits)], now)
        planned: list[tuple[str, Action]] = []
        for _ in range(MAX_STEPS):
            plans = [(run, plan(run, self.fleet, now)) for run in self._context.open_runs]
            planned += [(run.run_id, action) for run, actions in plans for action in actions]
            if not self._note(plans, now):
                break
        await self._write()
        for run_id, action in planned:
            # A run that was archived meanwhile is left out: the housekeeping stops clients that still train it.
            if run_id in self._context.open_runs:
                self._executor.act(self._context.open_runs[run_id], action)

    def _note(self, plans: list[tuple[Run, list[Action]]], now: float) -> bool:
        """Apply the planned actions that are events; True when that calls for another plan."""
        has_changed = False
        for run, planned in plans:
            events = [action for action in planned if not isinstance(action, EndServer)]
            if events:
                self._context.open_runs.apply(run.run_id, events, now)
                has_changed = True
        return has_changed

    async def _write(self) -> None:
        tasks = {run.run_id: run.spec.task_id for run in self._context.open_runs}
        batch = self._context.open_runs.take_batch()
        if batch:
            await self._context.journal.call(self._context.journal.write, batch)
            batch.written.set()
            self._context.meters.take(batch, tasks)
            self._context.events.note_batch(batch, tasks)

    def _probe(self, now: float) -> None:
        for run in self._context.open_runs:
            if self.fleet.listening_since is not None and needs_watching(run, self.fleet):
                self._servers.probe(run, now, every_s=run.spec.limits.server_lost_s)
            else:
                self._servers.is_connected(run.run_id)


EVERY_S = 1.0
STOP_RETRY_S = 5.0
PRUNE_EVERY_S = 3600.0

LONG_GAP_S = 86400.0
"""A clock that starts so long after the journal's last entry may have been set wrong: nothing is deleted at once."""


class Housekeeping:
    """What a leading manager does beside its runs: archive, prune, clear topics, stop clients of closed runs."""

    def __init__(self, context: ManagerContext, *, servers: Servers, executor: Executor) -> None:
        self._context = context
        self._servers = servers
        self._executor = executor
        self._stopped_at: dict[tuple[str, str], float] = {}
        self._pruned_at = context.clock.now() if context.clock.gap_s > LONG_GAP_S else float("-inf")

    async def run(self) -> None:
        """Repeat every `EVERY_S`, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            now = self._context.clock.now()
            await self._stop_clients_of_closed_runs(now)
            await self._archive(now)
            await self._clear_orphaned_run_topics()
            await self._prune(now)

    async def _stop_clients_of_closed_runs(self, now: float) -> None:
        """Send a stop to clients whose status names a closed run, until it does not."""
        found = self._context.bus_reader.clients_of_closed_runs
        if not found:
            return
        seen = dict(found)
        views = {key: self._context.bus_reader.fleet.client(*key) for key in seen}
        training = {key: view.status.run for key, view in views.items() if view is not None and not view.is_out}
        run_ids = {run.run_id for run in training.values() if run}
        closed = await self._context.journal.call(self._context.journal.reader.ended_runs, run_ids)
        for key, view in seen.items():
            run = training.get(key)
            if run is None or run.run_id not in closed or run.run_id in self._context.open_runs:
                if found.get(key) is view:  # else its status changed during the query, to another run perhaps
                    del found[key]
                    self._stopped_at.pop(key, None)
            elif now - self._stopped_at.get(key, float("-inf")) >= STOP_RETRY_S:
                self._stopped_at[key] = now
                task_id, mac = key
                self._executor.stop(task_id, run.run_id, StopSent(mac, run.attempt, "the run is closed"))

    async def _clear_orphaned_run_topics(self) -> None:
        for run_id, topic in list(self._context.bus_reader.orphaned_run_topics.items()):
            if run_id in self._context.open_runs or await self._clear(topic):
                self._context.bus_reader.orphaned_run_topics.pop(run_id, None)
                logger.info("cleared a run from the bus", extra={"run_id": run_id})

    async def _archive(self, now: float) -> None:
        for run in self._context.open_runs:
            if not self._may_archive(run, now):
                continue
            await self._context.journal.call(self._context.journal.archive, run.run_id)
            self._context.open_runs.drop(run.run_id)
            # Cleared only now, when the status publisher cannot publish it again; repeated until the broker confirms.
            self._context.bus_reader.orphaned_run_topics[run.run_id] = topics.run_status(run.spec.task_id, run.run_id)
            self._context.bus_reader.note_clients_of_closed_runs(run)
            self._servers.forget(run.run_id)
            logger.info("archived a run", extra={"run_id": run.run_id})

    def _may_archive(self, run: Run, now: float) -> bool:
        has_no_server = run.exited_at is not None or run.launch == 0 or run.spec.is_adopted
        is_old = run.ended_at is not None and now - run.ended_at > self._context.settings.archive_after_s
        return has_no_server and is_old

    async def _prune(self, now: float) -> None:
        if now - self._pruned_at < PRUNE_EVERY_S:
            return
        self._pruned_at = now
        keep_runs_s, keep_events_s = self._context.settings.keep_runs_s, self._context.settings.keep_events_s
        run_ids = await self._context.journal.call(
            self._context.journal.prune, runs_before=now - keep_runs_s, events_before=now - keep_events_s
        )
        for run_id in run_ids:
            await asyncio.to_thread(self._servers.delete_logs, run_id)
            logger.info("deleted an old run", extra={"run_id": run_id})

    async def _clear(self, topic: Topic) -> bool:
        try:
            await self._context.connection.publish(topic, None)
        except BusError as error:
            logger.debug("could not clear a topic", extra={"topic": str(topic), "problem": str(error)})
            return False
        return True
