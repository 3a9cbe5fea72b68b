"""Changes of clients, runs and apps, for the event stream, the page and Home Assistant; no listener delays the loop.

A listener that does not keep up loses the changes in its queue and gets *lagged*; it must then read everything again.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property, partial
from typing import Any

from fedops_mqtt.core.fleet import ClientView, Fleet, facts_of
from fedops_mqtt.core.run import Run
from fedops_mqtt.manager.api.app_models import AppRecord
from fedops_mqtt.manager.api.models import ClientRecord, RunRecord, to_utc
from fedops_mqtt.manager.journal import Batch, JournalEvent

MAX_WAITING = 20_000
"""Changes queued for one listener: every client of a large fleet may change at once."""

ClientKey = tuple[str, str]


class ChangeTopic(StrEnum):
    """What a change is about."""

    CLIENT = "client"
    FORGOTTEN = "forgotten"
    RUN = "run"
    ROUND = "round"
    METRICS = "metrics"
    EVENT = "event"
    APP = "app"
    """A version of a task's app was published, made current or withdrawn."""
    LAGGED = "lagged"
    """Changes were lost for this listener."""


@dataclass(frozen=True, kw_only=True)
class FleetChange:
    """One change; `record` is the API's record, made when it is first read.

    A run of thousands changes many times a second, and most listeners only need to know that it did.
    """

    kind: ChangeTopic
    task_id: str | None = None
    run_id: str | None = None
    client_mac: str | None = None
    make_record: Callable[[], dict[str, Any]] = dict

    @cached_property
    def record(self) -> dict[str, Any]:
        """The record as JSON has it; all listeners share it."""
        return self.make_record()

    def is_about(self, task_id: str | None, run_id: str | None) -> bool:
        """Return whether this is about a task and a run; None is any. Clients belong to no run."""
        if self.kind is ChangeTopic.LAGGED:
            return True
        return task_id in (None, self.task_id) and run_id in (None, self.run_id)


class Subscription:
    """One listener's queue of changes of some kinds."""

    def __init__(self, kinds: frozenset[ChangeTopic]) -> None:
        self.kinds = kinds
        self._waiting: list[FleetChange] = []
        self._is_lagging = False
        self._has_changes = asyncio.Event()

    def put(self, change: FleetChange) -> None:
        """Add a change; a full queue is emptied first."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.clear()
            self._is_lagging = True
        self._waiting.append(change)
        self._has_changes.set()

    def take(self) -> list[FleetChange]:
        """Return the changes in the queue, without waiting."""
        self._has_changes.clear()
        taken, self._waiting = self._waiting, []
        if self._is_lagging:
            self._is_lagging = False
            taken.insert(0, FleetChange(kind=ChangeTopic.LAGGED))
        return taken

    async def wait(self, timeout_s: float) -> list[FleetChange]:
        """Return the changes that come within `timeout_s`; empty when there is none."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_changes.wait()
        except TimeoutError:
            return []
        return self.take()


class Events:
    """Distributes changes to its listeners; used in one event loop."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._published: dict[ClientKey, tuple[Any, ...]] = {}

    @contextmanager
    def subscribed(self, *kinds: ChangeTopic) -> Iterator[Subscription]:
        """Collect changes while the block runs, of these kinds, or of every kind; *lagged* comes in any case."""
        subscription = Subscription(frozenset(kinds or ChangeTopic))
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def note_clients(self, keys: Iterable[ClientKey], fleet: Fleet) -> None:
        """Publish how these clients are now; a heartbeat that repeats a status is no change."""
        for task_id, mac in keys:
            view = fleet.client(task_id, mac)
            if view is None:
                self._published.pop((task_id, mac), None)
                forgotten = {"task_id": task_id, "client_mac": mac}
                self._publish(ChangeTopic.FORGOTTEN, partial(dict, forgotten), task_id, None, mac)
            elif self._published.get((task_id, mac)) != (facts := facts_of(view)):
                self._published[task_id, mac] = facts
                self._publish(ChangeTopic.CLIENT, partial(client_record, view), task_id, None, mac)

    def note_app(self, app: AppRecord) -> None:
        """Publish that a version of a task's app was published, made current or withdrawn."""
        self._publish(ChangeTopic.APP, partial(app.model_dump, mode="json"), app.task_id, None, None)

    def note_run(self, run: Run) -> None:
        """Publish how a run is now."""
        self._publish(ChangeTopic.RUN, partial(run_record, run), run.spec.task_id, run.run_id, None)

    def note_batch(self, batch: Batch, tasks: Mapping[str, str]) -> None:
        """Publish what a turn of the manager has written; `tasks` by run."""
        for _, run in batch.runs.values():
            self.note_run(run)
        for row in batch.rounds:
            self._publish(ChangeTopic.ROUND, partial(_dated, row), tasks.get(row["run_id"]), row["run_id"], None)
        for row in batch.client_metrics:
            self._publish(ChangeTopic.METRICS, partial(_dated, row), row["task_id"], row["run_id"], row["client_mac"])
        for event in batch.events:
            self._publish(
                ChangeTopic.EVENT, partial(_event_record, event), event.task_id, event.run_id, event.client_mac
            )

    def _publish(
        self,
        kind: ChangeTopic,
        make_record: Callable[[], dict[str, Any]],
        task_id: str | None,
        run_id: str | None,
        mac: str | None,
    ) -> None:
        listeners = [subscription for subscription in self._subscriptions if kind in subscription.kinds]
        if listeners:
            change = FleetChange(kind=kind, task_id=task_id, run_id=run_id, client_mac=mac, make_record=make_record)
            for subscription in listeners:
                subscription.put(change)


def client_record(view: ClientView) -> dict[str, Any]:
    """Return a client's record as JSON has it."""
    return ClientRecord.of(view).model_dump(mode="json")


def run_record(run: Run) -> dict[str, Any]:
    """Return a run's record as JSON has it; of thousands of clients that is some 0.2 s of work."""
    return RunRecord.of(run).model_dump(mode="json")


def _dated(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "at": to_utc(row["at"]).isoformat()}


def _event_record(event: JournalEvent) -> dict[str, Any]:
    return _dated(asdict(event))
