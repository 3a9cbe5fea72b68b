"""What changed, for everybody who looks on: the event stream, the page, the counters. Nobody here holds up the loop.

A listener that does not keep up loses what it has not taken and is told so; it then reads everything anew.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, partial
from typing import Any

from fedops_mqtt.core.fleet import ClientView, Fleet
from fedops_mqtt.core.run import Run
from fedops_mqtt.manager.api.models import ClientRecord, RunRecord, to_utc
from fedops_mqtt.manager.journal import Batch, JournalEvent

MAX_WAITING = 20_000
"""News kept for one listener: every client of a large fleet may change at once."""

ClientKey = tuple[str, str]


class ChangeTopic(StrEnum):
    """What a piece of news is about."""

    CLIENT = "client"
    FORGOTTEN = "forgotten"
    RUN = "run"
    ROUND = "round"
    METRICS = "metrics"
    EVENT = "event"
    LAGGED = "lagged"
    """News were lost to this listener; what it knows may be out of date."""


@dataclass(frozen=True, kw_only=True)
class FleetChange:
    """One change; `record` is the API's record of the same thing, made when somebody first reads it.

    A run of thousands changes many times a second, and most listeners only want to know that something did.
    """

    kind: ChangeTopic
    task_id: str | None = None
    run_id: str | None = None
    client_mac: str | None = None
    make_record: Callable[[], dict[str, Any]] = dict

    @cached_property
    def record(self) -> dict[str, Any]:
        """The change as JSON says it; all listeners share it."""
        return self.make_record()

    def is_about(self, task_id: str | None, run_id: str | None) -> bool:
        """Return whether this concerns a task and a run; None is any. Clients belong to no run."""
        if self.kind is ChangeTopic.LAGGED:
            return True
        return task_id in (None, self.task_id) and run_id in (None, self.run_id)


class Subscription:
    """One listener's news, of the kinds that it asked for."""

    def __init__(self, kinds: frozenset[ChangeTopic]) -> None:
        self.kinds = kinds
        self._waiting: list[FleetChange] = []
        self._is_lagging = False
        self._news = asyncio.Event()

    def put(self, news: FleetChange) -> None:
        """Keep news until they are taken."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.clear()
            self._is_lagging = True
        self._waiting.append(news)
        self._news.set()

    def take(self) -> list[FleetChange]:
        """Return what came since the last time, at once."""
        self._news.clear()
        taken, self._waiting = self._waiting, []
        if self._is_lagging:
            self._is_lagging = False
            taken.insert(0, FleetChange(kind=ChangeTopic.LAGGED))
        return taken

    async def wait(self, timeout_s: float) -> list[FleetChange]:
        """Return what comes within `timeout_s`; empty when nothing does."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return []
        return self.take()


class Events:
    """Where the loop tells what changed; all of it in one event loop."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._told: dict[ClientKey, tuple[Any, ...]] = {}

    @contextmanager
    def subscribed(self, *kinds: ChangeTopic) -> Iterator[Subscription]:
        """Collect news while the block runs, of these kinds only, or of every kind; *lagged* comes to everybody."""
        subscription = Subscription(frozenset(kinds or ChangeTopic))
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def note_clients(self, keys: Iterable[ClientKey], fleet: Fleet) -> None:
        """Tell how these clients are now; a heartbeat that repeats a status is no news."""
        for task_id, mac in keys:
            view = fleet.client(task_id, mac)
            if view is None:
                self._told.pop((task_id, mac), None)
                forgotten = {"task_id": task_id, "client_mac": mac}
                self._tell(ChangeTopic.FORGOTTEN, partial(dict, forgotten), task_id, None, mac)
            elif self._told.get((task_id, mac)) != (gist := _gist(view)):
                self._told[task_id, mac] = gist
                self._tell(ChangeTopic.CLIENT, partial(client_record, view), task_id, None, mac)

    def note_run(self, run: Run) -> None:
        """Tell how a run stands."""
        self._tell(ChangeTopic.RUN, partial(run_record, run), run.spec.task_id, run.run_id, None)

    def tell(self, batch: Batch, tasks: Mapping[str, str]) -> None:
        """Tell what a turn of the manager has written down; `tasks` by run."""
        for _, run in batch.runs.values():
            self.note_run(run)
        for row in batch.rounds:
            self._tell(ChangeTopic.ROUND, partial(_dated, row), tasks.get(row["run_id"]), row["run_id"], None)
        for row in batch.client_metrics:
            self._tell(ChangeTopic.METRICS, partial(_dated, row), row["task_id"], row["run_id"], row["client_mac"])
        if self._listeners(ChangeTopic.EVENT):
            for event in batch.events:
                self._tell(ChangeTopic.EVENT, partial(_row, event), event.task_id, event.run_id, event.client_mac)

    def _listeners(self, kind: ChangeTopic) -> list[Subscription]:
        return [subscription for subscription in self._subscriptions if kind in subscription.kinds]

    def _tell(
        self,
        kind: ChangeTopic,
        make_record: Callable[[], dict[str, Any]],
        task_id: str | None,
        run_id: str | None,
        mac: str | None,
    ) -> None:
        listeners = self._listeners(kind)
        if not listeners:
            return
        news = FleetChange(kind=kind, task_id=task_id, run_id=run_id, client_mac=mac, make_record=make_record)
        for subscription in listeners:
            subscription.put(news)


def _gist(view: ClientView) -> tuple[Any, ...]:
    """Return what a heartbeat leaves as it is."""
    said = view.status
    return (
        view.presence,
        said.status,
        said.reason,
        said.instance,
        said.client_name,
        said.run,
        said.last_run,
        said.last_trigger,
        said.gl_model,
    )


def client_record(view: ClientView) -> dict[str, Any]:
    """Return a client's record as JSON has it."""
    return ClientRecord.of(view).model_dump(mode="json")


def run_record(run: Run) -> dict[str, Any]:
    """Return a run's record as JSON has it; of thousands of clients that is some 0.2 s of work."""
    return RunRecord.of(run).model_dump(mode="json")


def _dated(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "at": to_utc(row["at"]).isoformat()}


def _row(event: JournalEvent) -> dict[str, Any]:
    return {
        "at": to_utc(event.at).isoformat(),
        "kind": event.kind,
        "run_id": event.run_id,
        "task_id": event.task_id,
        "client_mac": event.client_mac,
        "detail": dict(event.detail),
    }
