"""What is written down, for scripts and spreadsheets: events, rounds, numbers, models, logs; JSON in pages, or CSV."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec

from fastapi import FastAPI, Query
from fastapi.responses import FileResponse, Response, StreamingResponse

from fedops_mqtt.core.run import Run
from fedops_mqtt.manager.api.models import (
    ClientRecord,
    History,
    LogPart,
    ModelPage,
    ModelRecord,
    Record,
    RunRecord,
    to_utc,
)
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.errors import UnknownClientError, UnknownModelError, UnknownRunError
from fedops_mqtt.manager.export import Export, Exporter, table_of
from fedops_mqtt.manager.files import find_model, list_models, read_log
from fedops_mqtt.protocol import TaskId, normalise_mac

MAX_HISTORY = 10_000

Offset = Annotated[int, Query(ge=0, le=2**62)]
HistoryLimit = Annotated[int, Query(ge=1, le=MAX_HISTORY)]
Row = Mapping[str, Any]
P = ParamSpec("P")


class HistoryApi:
    """The endpoints; they read the journal and the folders of servers."""

    def __init__(self, context: ManagerContext) -> None:
        self._context = context
        self._reader = context.journal.reader
        self._exporter = Exporter(context.journal.url)

    def add_to(self, app: FastAPI, prefix: str) -> None:
        """Add the endpoints."""
        app.get(prefix + "/clients/{client_mac}")(self.get_client)
        for path, method in (
            ("/clients/{client_mac}/events", self.list_client_events),
            ("/clients/{client_mac}/metrics", self.list_client_metrics),
            ("/runs/{run_id}/events", self.list_events),
            ("/runs/{run_id}/rounds", self.list_rounds),
            ("/runs/{run_id}/metrics", self.list_metrics),
        ):
            app.get(prefix + path, response_model=History)(self.written(method))
        app.get(prefix + "/tasks/{task_id}/models")(self.list_models)
        app.get(prefix + "/tasks/{task_id}/models/{file_name}", response_class=FileResponse, responses=_MODEL_FILE)(
            self.download_model
        )
        app.get(prefix + "/runs/{run_id}/logs")(self.read_log)
        app.get(prefix + "/runs/{run_id}/{what}.csv", response_class=StreamingResponse, responses=_CSV)(self.export)

    def written(self, method: Callable[..., Awaitable[Record]]) -> Callable[..., Awaitable[Response]]:
        """Return an endpoint whose answer, which may be long, is written on a reader's thread and not in the loop."""

        @wraps(method)
        async def answer(*args: Any, **kwargs: Any) -> Response:
            record = await method(*args, **kwargs)
            return Response(await self._reader.call(record.model_dump_json), media_type="application/json")

        return answer

    async def find_run(self, run_id: str) -> Run:
        """Return a run, open or archived.

        Raises:
            UnknownRunError: there is none of that name.
        """
        run = self._context.open_runs.get(run_id)
        if run is not None:
            return run
        found = await self._reader.call(self._reader.find_run, run_id)
        if found is None:
            raise UnknownRunError(run_id)
        return found

    async def run_record(self, run_id: str) -> RunRecord:
        """Return a run's record.

        Raises:
            UnknownRunError: there is none of that name.
        """
        return await self._reader.call(RunRecord.of, await self.find_run(run_id))

    async def get_client(self, client_mac: str, task_id: TaskId | None = None) -> ClientRecord:
        """Return a client's record; of several tasks the one with its newest message."""
        mac = normalise_mac(client_mac)
        views = [
            view
            for (task, known), view in self._context.bus_reader.fleet.clients.items()
            if known == mac and task_id in (None, task)
        ]
        if not views:
            raise UnknownClientError(mac)
        return ClientRecord.of(max(views, key=lambda view: view.heard_at))

    async def list_client_events(self, client_mac: str, limit: HistoryLimit = 1000) -> History:
        """Return a client's newest events, in all its runs and between them, oldest first."""
        return await self._history(self._reader.newest_of_client, "events", normalise_mac(client_mac), limit=limit)

    async def list_client_metrics(self, client_mac: str, limit: HistoryLimit = 1000) -> History:
        """List what a client measured lately, its system's load among it; oldest first."""
        mac = normalise_mac(client_mac)
        return await self._history(self._reader.newest_of_client, "client_metrics", mac, limit=limit)

    async def list_models(self, task_id: TaskId) -> ModelPage:
        """List the versions of a task's global model, newest first."""
        found = await self._reader.call(list_models, self._context.settings.store, task_id)
        return ModelPage(items=[ModelRecord.of(each, task_id) for each in found], total=len(found))

    async def download_model(self, task_id: TaskId, file_name: str) -> FileResponse:
        """Return one version of a global model."""
        found = await self._reader.call(find_model, self._context.settings.store, task_id, file_name)
        if found is None:
            raise UnknownModelError(task_id, file_name)
        return FileResponse(found.path, filename=file_name, media_type="application/octet-stream")

    async def list_events(self, run_id: str, after: Offset = 0, limit: HistoryLimit = 1000) -> History:
        """Return a run's events, oldest first; `after` is the last id that was read."""
        await self.find_run(run_id)
        return await self._history(self._reader.list_events, run_id=run_id, after_id=after, limit=limit)

    async def list_rounds(self, run_id: str) -> History:
        """List a run's rounds with the server's numbers."""
        await self.find_run(run_id)
        return await self._history(self._reader.list_rounds, run_id)

    async def list_metrics(
        self, run_id: str, client_mac: str | None = None, after: Offset = 0, limit: HistoryLimit = MAX_HISTORY
    ) -> History:
        """List what a run's clients measured, oldest first; `after` is the last id that was read."""
        await self.find_run(run_id)
        mac = normalise_mac(client_mac) if client_mac else None
        read = self._reader.list_client_metrics
        return await self._history(read, run_id, client_mac=mac, after_id=after, limit=limit)

    async def newest_of_run(self, name: Literal["events", "client_metrics"], run_id: str, limit: int) -> History:
        """Return a run's newest rows, oldest first; of a large run all rows are no page."""
        return await self._history(self._reader.newest_of_run, name, run_id, limit=limit)

    async def _history(self, read: Callable[P, Sequence[Row]], /, *args: P.args, **kwargs: P.kwargs) -> History:
        def rows() -> History:
            return History(items=[{**row, "at": to_utc(row["at"])} for row in read(*args, **kwargs)])

        await self._context.open_runs.wait_written()
        return await self._reader.call(rows)

    async def read_log(
        self, run_id: str, launch: Annotated[int | None, Query(ge=1)] = None, offset: Offset = 0
    ) -> LogPart:
        """Read the log of a run's FL server from a byte on; without `launch` that of the last one."""
        run = await self.find_run(run_id)
        launches = await self._reader.call(self._context.journal.list_launches, run_id)
        wanted = [each for each in launches if launch in (None, each.launch)]
        if not wanted:
            return LogPart(run_id=run_id, launch=launch or 0, text="", next_offset=offset, is_over=run.has_ended)
        log = wanted[-1]
        text, end = await self._reader.call(read_log, Path(log.log_path), offset)
        return LogPart(
            run_id=run_id, launch=log.launch, text=text, next_offset=end, is_over=log.exit_reason is not None
        )

    async def export(self, run_id: str, what: Export) -> StreamingResponse:
        """Return a run's rounds, metrics, events or clients as CSV, one value a column."""
        run = await self.find_run(run_id)
        headers = {"Content-Disposition": f'attachment; filename="{run_id}-{what}.csv"'}
        return StreamingResponse(await self._table(run, what), media_type="text/csv; charset=utf-8", headers=headers)

    async def _table(self, run: Run, what: Export) -> AsyncIterator[bytes] | Iterator[str]:
        await self._context.open_runs.wait_written()
        match what:
            case Export.METRICS | Export.EVENTS:
                return await begun(self._exporter.parts(run.run_id, what))
            case Export.ROUNDS:
                rows: Sequence[Row] = await self._reader.call(self._reader.list_rounds, run.run_id)
            case Export.CLIENTS:
                rows = await self._reader.call(_member_rows, run)
        return table_of(rows)  # on a thread of Starlette's


async def begun(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return the parts once there is a first one: a database that is away is an answer, not a table that breaks off."""
    first = await anext(parts)

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for part in parts:
            yield part

    return whole()


def _member_rows(run: Run) -> list[Row]:
    members = RunRecord.of(run).clients
    return [{"client_mac": mac, **member.model_dump(mode="json")} for mac, member in members.items()]


_CSV: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A table with a head.",
        "content": {"text/csv": {"schema": {"type": "string"}, "example": "run_id,round,metrics.accuracy\r\n…"}},
    }
}

_MODEL_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The safetensors file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}, "example": "…"}},
    }
}
