"""What is written down, for scripts and spreadsheets: events, rounds, numbers, models, logs; JSON in pages, or CSV."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response

from fedops_mqtt.core.run import Run
from fedops_mqtt.manager.api_models import (
    ClientRecord,
    History,
    LogPart,
    MemberRecord,
    ModelPage,
    ModelRecord,
    RunRecord,
    to_utc,
)
from fedops_mqtt.manager.desk import Desk
from fedops_mqtt.manager.errors import UnknownClientError, UnknownModelError, UnknownRunError
from fedops_mqtt.manager.files import find_model, list_models, read_log
from fedops_mqtt.protocol import TaskId, normalise_mac

MAX_HISTORY = 10_000
MAX_EXPORT = 1_000_000

Offset = Annotated[int, Query(ge=0, le=2**62)]
HistoryLimit = Annotated[int, Query(ge=1, le=MAX_HISTORY)]
Row = Mapping[str, Any]


class Export(StrEnum):
    """What of a run can be had as a table."""

    ROUNDS = "rounds"
    METRICS = "metrics"
    EVENTS = "events"
    CLIENTS = "clients"


class HistoryApi:
    """The endpoints; they read the journal and the folders of servers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, router: APIRouter) -> None:
        """Put the endpoints on the API's router."""
        router.get("/clients/{client_mac}")(self.get_client)
        router.get("/clients/{client_mac}/events")(self.list_client_events)
        router.get("/clients/{client_mac}/metrics")(self.list_client_metrics)
        router.get("/tasks/{task_id}/models")(self.list_models)
        router.get("/tasks/{task_id}/models/{file_name}", response_class=FileResponse, responses=_MODEL_FILE)(
            self.download_model
        )
        router.get("/runs/{run_id}/events")(self.list_events)
        router.get("/runs/{run_id}/rounds")(self.list_rounds)
        router.get("/runs/{run_id}/metrics")(self.list_metrics)
        router.get("/runs/{run_id}/logs")(self.read_log)
        router.get("/runs/{run_id}/{what}.csv", response_class=Response, responses=_CSV)(self.export)

    async def find_run(self, run_id: str) -> Run:
        """Return a run, open or archived.

        Raises:
            UnknownRunError: there is none of that name.
        """
        run = self._desk.ledger.get(run_id)
        if run is not None:
            return run
        found = await self._desk.journal.call(self._desk.journal.find_run, run_id)
        if found is None:
            raise UnknownRunError(run_id)
        return found.run

    async def get_client(self, client_mac: str, task_id: TaskId | None = None) -> ClientRecord:
        """Tell how a client is; of several tasks the one in which it was heard last."""
        mac = normalise_mac(client_mac)
        views = [
            view
            for (task, known), view in self._desk.watch.fleet.clients.items()
            if known == mac and task_id in (None, task)
        ]
        if not views:
            raise UnknownClientError(mac)
        return ClientRecord.of(max(views, key=lambda view: view.heard_at))

    async def list_client_events(self, client_mac: str, limit: HistoryLimit = 1000) -> History:
        """Tell a client's newest story, in all its runs and between them; oldest first."""
        rows = await self._desk.journal.call(
            self._desk.journal.newest_of_client, "events", normalise_mac(client_mac), limit=limit
        )
        return _history(rows)

    async def list_client_metrics(self, client_mac: str, limit: HistoryLimit = 1000) -> History:
        """List what a client measured lately, its system's load among it; oldest first."""
        rows = await self._desk.journal.call(
            self._desk.journal.newest_of_client, "client_metrics", normalise_mac(client_mac), limit=limit
        )
        return _history(rows)

    async def list_models(self, task_id: TaskId) -> ModelPage:
        """List the versions of a task's global model, newest first."""
        found = await self._desk.journal.call(list_models, self._desk.settings.store, task_id)
        return ModelPage(items=[ModelRecord.of(each, task_id) for each in found], total=len(found))

    async def download_model(self, task_id: TaskId, file_name: str) -> FileResponse:
        """Hand out one version of a global model."""
        found = await self._desk.journal.call(find_model, self._desk.settings.store, task_id, file_name)
        if found is None:
            raise UnknownModelError(task_id, file_name)
        return FileResponse(found.path, filename=file_name, media_type="application/octet-stream")

    async def list_events(self, run_id: str, after: Offset = 0, limit: HistoryLimit = 1000) -> History:
        """Tell a run's story, oldest first; `after` is the last id that was read."""
        await self.find_run(run_id)
        journal = self._desk.journal
        return _history(await journal.call(journal.list_events, run_id=run_id, after_id=after, limit=limit))

    async def list_rounds(self, run_id: str) -> History:
        """List a run's rounds with the server's numbers."""
        await self.find_run(run_id)
        return _history(await self._desk.journal.call(self._desk.journal.list_rounds, run_id))

    async def list_metrics(
        self, run_id: str, client_mac: str | None = None, after: Offset = 0, limit: HistoryLimit = MAX_HISTORY
    ) -> History:
        """List what a run's clients measured, oldest first; `after` is the last id that was read."""
        await self.find_run(run_id)
        mac = normalise_mac(client_mac) if client_mac else None
        journal = self._desk.journal
        rows = await journal.call(journal.list_client_metrics, run_id, client_mac=mac, after_id=after, limit=limit)
        return _history(rows)

    async def read_log(
        self, run_id: str, launch: Annotated[int | None, Query(ge=1)] = None, offset: Offset = 0
    ) -> LogPart:
        """Read the log of a run's FL server from a byte on; without `launch` that of the last one."""
        run = await self.find_run(run_id)
        launches = await self._desk.journal.call(self._desk.journal.list_launches, run_id)
        wanted = [each for each in launches if launch in (None, each.launch)]
        if not wanted:
            return LogPart(run_id=run_id, launch=launch or 0, text="", next_offset=offset, is_over=run.has_ended)
        log = wanted[-1]
        text, end = await self._desk.journal.call(read_log, Path(log.log_path), offset)
        return LogPart(
            run_id=run_id, launch=log.launch, text=text, next_offset=end, is_over=log.exit_reason is not None
        )

    async def export(self, run_id: str, what: Export) -> Response:
        """Return a run's rounds, metrics, events or clients as CSV, one value a column."""
        run = await self.find_run(run_id)
        rows = await self._rows(run, what)
        headers = {"Content-Disposition": f'attachment; filename="{run_id}-{what}.csv"'}
        return Response(to_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)

    async def _rows(self, run: Run, what: Export) -> Sequence[Row]:
        journal = self._desk.journal
        match what:
            case Export.ROUNDS:
                return await journal.call(journal.list_rounds, run.run_id)
            case Export.METRICS:
                return await journal.call(journal.list_client_metrics, run.run_id, limit=MAX_EXPORT)
            case Export.EVENTS:
                return await journal.call(journal.list_events, run_id=run.run_id, limit=MAX_EXPORT)
            case Export.CLIENTS:
                return [_member_row(mac, member) for mac, member in RunRecord.of(run).clients.items()]


def _history(rows: Sequence[Row]) -> History:
    return History(items=[{**row, "at": to_utc(row["at"])} for row in rows])


def to_csv(rows: Iterable[Row]) -> str:
    """Return rows as CSV (RFC 4180) with a head; a dictionary becomes a column for each of its names."""
    flat = [dict(_flatten(row)) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _safe(value) for name, value in row.items()} for row in flat)
    return text.getvalue()


def _flatten(row: Row) -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        elif name == "at" and isinstance(value, float):
            yield name, to_utc(value).isoformat(timespec="milliseconds")
        else:
            yield name, value


def _safe(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted: devices choose their own words."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    if isinstance(value, list | dict):
        return json.dumps(value)
    return value.isoformat() if isinstance(value, datetime) else value


def _member_row(mac: str, member: MemberRecord) -> Row:
    return {"client_mac": mac, **member.model_dump(mode="json")}


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
