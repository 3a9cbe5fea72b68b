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
from fedops_mqtt.manager.events import ChangeTopic, FleetChange, client_record, run_record
from fedops_mqtt.protocol import RunId, TaskId

KEEP_ALIVE_S = 15.0
"""A comment is sent after this time without a change: proxies cut idle connections."""
_CALM_S = 0.05
"""Changes within this time are sent together."""
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

EXAMPLE = 'event: client\ndata: {"task_id": "digits", "client_mac": "02:00:00:00:00:01", "presence": "online"}\n\n'
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`client`, `run`, `forgotten`, `round`, `metrics`, `event`, `app`, `lagged`; "
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
                yield await self._write(self._present(task_id, run_id))
            yield "event: ready\ndata: {}\n\n"
            while True:
                changes = await subscription.wait(KEEP_ALIVE_S)
                if not changes:
                    yield ": still here\n\n"
                    continue
                await asyncio.sleep(_CALM_S)
                changes += subscription.take()
                yield await self._write([each for each in changes if each.is_about(task_id, run_id)])

    async def _write(self, changes: list[FleetChange]) -> str:
        """Return changes as text, written outside the event loop: a run of thousands is some megabytes."""

        def blocks() -> str:
            return "".join(
                f"event: {each.kind}\ndata: {json.dumps(each.record, separators=(',', ':'), default=str)}\n\n"
                for each in changes
            )

        return await self._context.journal.reader.call(blocks) if changes else ""

    def _present(self, task_id: str | None, run_id: str | None) -> list[FleetChange]:
        runs = [
            FleetChange(kind=ChangeTopic.RUN, run_id=run.run_id, make_record=partial(run_record, run))
            for run in self._context.open_runs
            if task_id in (None, run.spec.task_id) and run_id in (None, run.run_id)
        ]
        if run_id is not None:
            return runs
        return runs + [
            FleetChange(kind=ChangeTopic.CLIENT, make_record=partial(client_record, view))
            for (task, _), view in sorted(self._context.bus_reader.fleet.clients.items())
            if task_id in (None, task)
        ]
