"""`GET /events` as server-sent events (WHATWG HTML, 9.2): how everything is, then every change.

There is no replay: after a reconnect the present state is sent again.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi.responses import StreamingResponse

from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.events import ChangeTopic, FleetChange, Subscription, client_record, run_record
from fedops_mqtt.protocol import RunId, TaskId

KEEP_ALIVE_S = 15.0
"""A comment is sent when nothing else was for so long: proxies cut silent connections."""
_CALM_S = 0.05
"""News of one moment go out together."""
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

EXAMPLE = 'event: client\ndata: {"task_id": "digits", "client_mac": "02:00:00:00:00:01", "presence": "online"}\n\n'
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`client`, `run`, `forgotten`, `round`, `metrics`, `event`, `lagged`; "
        "first everything as it is, then `ready`, then changes.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": EXAMPLE}},
    }
}


class EventStream:
    """The endpoint."""

    def __init__(self, context: ManagerContext) -> None:
        self._context = context

    async def stream(
        self, task_id: TaskId | None = None, run_id: RunId | None = None, snapshot: bool = True
    ) -> StreamingResponse:
        """Follow what happens: clients, runs, rounds, events; `snapshot=false` leaves the present state out."""
        return StreamingResponse(
            self._lines(task_id, run_id, snapshot=snapshot), media_type="text/event-stream", headers=_HEADERS
        )

    async def _lines(self, task_id: str | None, run_id: str | None, *, snapshot: bool) -> AsyncIterator[str]:
        with self._context.events.subscribed() as subscription:
            yield "retry: 2000\n\n"
            if snapshot:
                yield await self._written(self._present(task_id, run_id))
            yield "event: ready\ndata: {}\n\n"
            async for news in _news(subscription):
                wanted = [each for each in news if each.is_about(task_id, run_id)]
                yield await self._written(wanted) if wanted or news else ": still here\n\n"

    async def _written(self, news: list[FleetChange]) -> str:
        """Return news as text, written outside the event loop: a run of thousands is some megabytes."""
        return await self._context.journal.reader.call(lambda: "".join(map(_block, news)))

    def _present(self, task_id: str | None, run_id: str | None) -> list[FleetChange]:
        runs = [run for run in self._context.open_runs if task_id in (None, run.spec.task_id)]
        news = [
            FleetChange(kind=ChangeTopic.RUN, run_id=run.run_id, make_record=partial(run_record, run))
            for run in runs
            if run_id in (None, run.run_id)
        ]
        if run_id is not None:
            return news
        views = self._context.bus_reader.fleet.clients.items()
        return news + [
            FleetChange(kind=ChangeTopic.CLIENT, make_record=partial(client_record, view))
            for (task, _), view in sorted(views)
            if task_id in (None, task)
        ]


async def _news(subscription: Subscription) -> AsyncIterator[list[FleetChange]]:
    while True:
        news = await subscription.wait(KEEP_ALIVE_S)
        if news:
            await asyncio.sleep(_CALM_S)
            news += subscription.take()
        yield news


def _block(news: FleetChange) -> str:
    return f"event: {news.kind}\ndata: {json.dumps(news.record, separators=(',', ':'), default=str)}\n\n"
