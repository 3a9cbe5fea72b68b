"""What has to be done now and then: tell stragglers, archive runs, clear topics, delete old history.

Beside the loop, because it waits for the broker; nothing of it is urgent.
"""

import asyncio
import logging

from fedops_mqtt.bus import BusError
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_plan import StopClient
from fedops_mqtt.manager.actions import Executor
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.servers import Servers
from fedops_mqtt.protocol import Topic, topics

logger = logging.getLogger(__name__)

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
                self._executor.stop(task_id, hand.run_id, StopClient(mac, hand.attempt, "the run is closed"))

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
