"""The manager's loop: take in everything, apply it, plan once, write it down, act.

The order is the guarantee: what is not in the journal was not done, and what was read late changes the same plan.
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
"""Longest pause after a turn. A turn over thousands of clients is followed by a pause as long as itself: what comes
meanwhile is taken in together, and costs one plan instead of hundreds."""

BURST = 20
"""Events within `BURST_LOOK_S` that are no everyday talk: thousands came, were triggered or were lost."""

BURST_LOOK_S = 0.01

MAX_BURST_S = 0.5
"""Longest wait for the end of a burst: plans and the journal share the loop with the bus, and who is here comes first.
Somebody who floods the bus holds up nothing for longer."""

MAX_STEPS = 4
"""Plans in one turn: choosing leads to firing; more steps would be a plan that runs in a circle."""


class Manager:
    """One leading manager's loop; `app` builds it and owns the lives of its parts."""

    def __init__(
        self,
        desk: ManagerContext,
        *,
        board: RunStatusPublisher,
        servers: Servers,
        executor: Executor,
        orders: RunService,
    ) -> None:
        self._desk = desk
        self._board = board
        self._servers = servers
        self._executor = executor
        self._orders = orders
        self._num_heard = 0

    @property
    def fleet(self) -> Fleet:
        """Who is here."""
        return self._desk.watch.fleet

    async def listen(self) -> None:
        """Fold what the bus brings, for ever: who is here is known at once, whatever the journal is busy with."""
        while True:
            events = await self._desk.connection.drain()
            self._num_heard += len(events)
            if self._desk.watch.fold(events, self._desk.clock.now()):
                self._board.publish_all()
            self._desk.inbox.wake()

    async def run(self) -> None:
        """Take up the runs of an earlier manager, then take turns, for ever."""
        for run in self._desk.open_runs:
            if run.launch > 0 and run.exited_at is None and not run.spec.is_adopted:
                launches = await self._desk.journal.call(self._desk.journal.list_launches, run.run_id)
                self._servers.resume(run, launches, self._desk.open_runs.task(run.run_id))
        while True:
            await self.turn(TICK_S if len(self._desk.open_runs) else IDLE_TICK_S)

    async def turn(self, timeout_s: float) -> None:
        """Wait for news, at most `timeout_s`, and do what follows from them and from the time."""
        heard = self._num_heard
        reports = await self._desk.inbox.take(timeout_s)
        await self._hear_out(heard)
        began = time.monotonic()
        now = self._desk.clock.now()
        self._desk.watch.settle(now)
        for run_id, event in reports:
            self._desk.open_runs.apply(run_id, [event], now)
        if self._desk.watch.unknown_servers:
            await self._orders.meet(self._desk.watch.take_unknown_servers())
        await self._plan_and_act(now)
        self._desk.events.note_clients(self._desk.watch.take_changed(), self.fleet)
        self._probe(now)
        await asyncio.sleep(min(time.monotonic() - began, MAX_PAUSE_S))

    async def _hear_out(self, num_heard: int) -> None:
        """Let a burst that goes on pass, so that what it says is known at once and planned for together."""
        until = time.monotonic() + MAX_BURST_S
        while self._num_heard - num_heard >= BURST and time.monotonic() < until:
            num_heard = self._num_heard
            await asyncio.sleep(BURST_LOOK_S)

    async def _plan_and_act(self, now: float) -> None:
        """Plan to the end, write all of it down at once, and only then act."""
        self._desk.watch.settle(now)
        for run in self._desk.open_runs:
            if not run.has_ended and (waits := waits_for(run, self.fleet)) != run.reason:
                self._desk.open_runs.apply(run.run_id, [RunWaits(waits)], now)
        planned: list[tuple[str, Action]] = []
        for _ in range(MAX_STEPS):
            plans = [(run, plan(run, self.fleet, now)) for run in self._desk.open_runs]
            planned += [(run.run_id, action) for run, actions in plans for action in actions]
            if not self._note(plans, now):
                break
        await self._write()
        for run_id, action in planned:
            if run_id in self._desk.open_runs:  # else it was archived meanwhile: the upkeep tells who still trains it
                self._executor.act(self._desk.open_runs[run_id], action)

    def _note(self, plans: list[tuple[Run, list[Action]]], now: float) -> bool:
        """Enter what is about to be done; True when that calls for another plan."""
        has_changed = False
        for run, planned in plans:
            events = [action for action in planned if not isinstance(action, EndServer)]
            if events:
                self._desk.open_runs.apply(run.run_id, events, now)
                has_changed = True
        return has_changed

    async def _write(self) -> None:
        tasks = {run.run_id: run.spec.task_id for run in self._desk.open_runs}
        batch = self._desk.open_runs.take_batch()
        if batch:
            await self._desk.journal.call(self._desk.journal.write, batch)
            batch.written.set()
            self._desk.meters.take(batch, tasks)
            self._desk.events.tell(batch, tasks)

    def _probe(self, now: float) -> None:
        for run in self._desk.open_runs:
            if self.fleet.listening_since is not None and needs_watching(run, self.fleet):
                limits = self._desk.limits(self._desk.open_runs.task(run.run_id))
                self._servers.probe(run, now, every_s=limits.server_lost_s)
            else:
                self._servers.is_connected(run.run_id)


EVERY_S = 1.0
STRAGGLER_RETRY_S = 5.0
PRUNE_EVERY_S = 3600.0


class Housekeeping:
    """The housekeeping of a leading manager."""

    def __init__(self, desk: ManagerContext, *, servers: Servers, executor: Executor) -> None:
        self._desk = desk
        self._servers = servers
        self._executor = executor
        self._told_at: dict[tuple[str, str], float] = {}
        self._pruned_at = float("-inf")

    async def run(self) -> None:
        """Keep house, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            now = self._desk.clock.now()
            await self._stop_clients_of_closed_runs(now)
            await self._archive(now)
            await self._clear_orphaned_run_topics()
            await self._prune(now)

    async def _stop_clients_of_closed_runs(self, now: float) -> None:
        """A client whose snapshot names a run that is closed is told to stop, as often as it takes."""
        stragglers, reader = self._desk.watch.stragglers, self._desk.journal.reader
        seen = dict(stragglers)
        views = {key: self._desk.watch.fleet.client(*key) for key in seen}
        hands = {key: view.status.run for key, view in views.items() if view is not None and not view.is_out}
        run_ids = {hand.run_id for hand in hands.values() if hand}
        closed = await self._desk.journal.call(reader.ended_runs, run_ids) if seen else ()
        for key, view in seen.items():
            hand = hands.get(key)
            if hand is None or hand.run_id not in closed or hand.run_id in self._desk.open_runs:
                if stragglers.get(key) is view:  # else it was heard meanwhile, of another run perhaps
                    del stragglers[key]
                    self._told_at.pop(key, None)
            elif now - self._told_at.get(key, float("-inf")) >= STRAGGLER_RETRY_S:
                self._told_at[key] = now
                task_id, mac = key
                self._executor.stop(task_id, hand.run_id, StopSent(mac, hand.attempt, "the run is closed"))

    async def _clear_orphaned_run_topics(self) -> None:
        for run_id, topic in list(self._desk.watch.orphans.items()):
            if run_id in self._desk.open_runs or await self._clear(topic):
                self._desk.watch.orphans.pop(run_id, None)
                logger.info("cleared a run from the bus", extra={"run_id": run_id})

    async def _archive(self, now: float) -> None:
        for run in self._desk.open_runs:
            if not self._may_archive(run, now):
                continue
            await self._desk.journal.call(self._desk.journal.archive, run.run_id)
            self._desk.open_runs.drop(run.run_id)
            # Cleared only now, and again until the broker has it: the board cannot say the run once more after that.
            self._desk.watch.orphans[run.run_id] = topics.run_status(run.spec.task_id, run.run_id)
            self._desk.watch.note_clients_of_closed_runs(run)
            self._servers.forget(run.run_id)
            logger.info("archived a run", extra={"run_id": run.run_id})

    def _may_archive(self, run: Run, now: float) -> bool:
        is_gone = run.exited_at is not None or run.launch == 0 or run.spec.is_adopted
        return run.ended_at is not None and is_gone and now - run.ended_at > self._desk.settings.archive_after_s

    async def _prune(self, now: float) -> None:
        if now - self._pruned_at < PRUNE_EVERY_S:
            return
        self._pruned_at = now
        keep_runs_s, keep_events_s = self._desk.settings.keep_runs_s, self._desk.settings.keep_events_s
        run_ids = await self._desk.journal.call(
            self._desk.journal.prune, runs_before=now - keep_runs_s, events_before=now - keep_events_s
        )
        for run_id in run_ids:
            await asyncio.to_thread(self._servers.delete_logs, run_id)
            logger.info("deleted an old run", extra={"run_id": run_id})

    async def _clear(self, topic: Topic) -> bool:
        try:
            await self._desk.connection.publish(topic, None)
        except BusError as error:
            logger.debug("could not clear a topic", extra={"topic": str(topic), "problem": str(error)})
            return False
        return True
