"""The manager's HTTP API, version 1. It reads the loop's state and passes requests to the run service.

Every error is a problem document (RFC 9457), never a traceback.
"""

import errno
import json
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from fedops_mqtt.apps import AppRefusedError
from fedops_mqtt.bus import BusError
from fedops_mqtt.core.fleet import Presence
from fedops_mqtt.manager.api.apps import AppsApi
from fedops_mqtt.manager.api.event_stream import DOCUMENTED, EventStream
from fedops_mqtt.manager.api.history import HistoryApi
from fedops_mqtt.manager.api.models import (
    ClientPage,
    ClientRecord,
    Forgotten,
    Health,
    Problem,
    RunPage,
    RunRecord,
    RunRequest,
    RunSummary,
    StopRequest,
    TaskPage,
    TaskRecord,
)
from fedops_mqtt.manager.api.prometheus import CONTENT_TYPE
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.errors import (
    BundleMissingError,
    ClientPresentError,
    JournalAwayError,
    ManagerError,
    NotLaunchableError,
    RunConfigError,
    TaskBusyError,
    TasksFileError,
    TooFewClientsError,
    UnknownAppError,
    UnknownClientError,
    UnknownModelError,
    UnknownRunError,
    UnknownTaskError,
    UnreadableRunError,
)
from fedops_mqtt.manager.run_service import RunService
from fedops_mqtt.protocol import ClientCondition, IdentityError, ReasonCode, name_error, normalise_mac

logger = logging.getLogger(__name__)

PREFIX = "/api/v1"
MAX_PAGE = 1000

_STATUS_OF_ERROR: dict[type[Exception], HTTPStatus] = {
    UnknownTaskError: HTTPStatus.NOT_FOUND,
    UnknownRunError: HTTPStatus.NOT_FOUND,
    UnreadableRunError: HTTPStatus.INTERNAL_SERVER_ERROR,
    UnknownClientError: HTTPStatus.NOT_FOUND,
    UnknownModelError: HTTPStatus.NOT_FOUND,
    UnknownAppError: HTTPStatus.NOT_FOUND,
    BundleMissingError: HTTPStatus.GONE,
    RunConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TaskBusyError: HTTPStatus.CONFLICT,
    ClientPresentError: HTTPStatus.CONFLICT,
    NotLaunchableError: HTTPStatus.CONFLICT,
    TooFewClientsError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TasksFileError: HTTPStatus.SERVICE_UNAVAILABLE,
    JournalAwayError: HTTPStatus.SERVICE_UNAVAILABLE,
    IdentityError: HTTPStatus.UNPROCESSABLE_ENTITY,
}

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Offset = Annotated[int, Query(ge=0, le=2**31)]

_PROBLEM_TYPE = "application/problem+json"

_PROMETHEUS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Text exposition format 0.0.4.",
        "content": {"text/plain": {"schema": {"type": "string"}, "example": 'fedops_active_runs{task_id="digits"} 1'}},
    }
}


class _Application(FastAPI):
    """FastAPI, with the examples of `examples.json` in its OpenAPI, and a media type of their own for problems."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document = super().openapi()
        examples = json.loads(Path(__file__).with_name("examples.json").read_text(encoding="utf-8"))
        for name, schema in document["components"]["schemas"].items():
            if name.endswith("Page"):
                item = schema["properties"]["items"]["items"]["$ref"].rpartition("/")[2]
                schema["examples"] = [{"items": [examples[item]], "total": 1}]
            elif name in examples:
                schema["examples"] = [examples[name]]
        operations = (operation for path in document["paths"].values() for operation in path.values())
        for answer in (answer for operation in operations for answer in operation["responses"].values()):
            content = answer.get("content", {})
            if content.get("application/json", {}).get("schema") == {"$ref": "#/components/schemas/Problem"}:
                content[_PROBLEM_TYPE] = content.pop("application/json")
        return document


class Api:
    """The endpoints of one leading manager."""

    def __init__(self, context: ManagerContext, run_service: RunService) -> None:
        self._context = context
        self._run_service = run_service
        self.history = HistoryApi(context)
        self.apps = AppsApi(context)
        self._stream = EventStream(context)

    def app(self) -> FastAPI:
        """Return the application."""
        app = _Application(
            title="fedops-mqtt manager",
            version="1",
            openapi_url=f"{PREFIX}/openapi.json",
            docs_url=None,
            redoc_url=None,
            responses={"4XX": {"model": Problem}, 503: {"model": Problem}},
        )
        # Routes of an included router are all built twice.
        app.get(PREFIX + "/health")(self.health)
        app.get(PREFIX + "/events", response_class=StreamingResponse, responses=DOCUMENTED)(self._stream.stream)
        app.get(PREFIX + "/clients")(self.list_clients)
        app.delete(PREFIX + "/clients/{client_mac}")(self.forget_client)
        app.get(PREFIX + "/tasks")(self.list_tasks)
        app.get(PREFIX + "/runs", response_model=RunPage)(self.history.written(self.list_runs))
        app.post(PREFIX + "/runs", status_code=HTTPStatus.CREATED, responses={409: {"model": Problem}})(self.start_run)
        app.get(PREFIX + "/runs/{run_id}", response_model=RunRecord)(self.history.written(self.get_run))
        app.post(PREFIX + "/runs/{run_id}/stop", status_code=HTTPStatus.ACCEPTED)(self.stop_run)
        self.history.add_to(app, PREFIX)
        self.apps.add_to(app, PREFIX)
        app.get("/api/events", include_in_schema=False)(self._stream.stream)
        app.get("/metrics", response_class=Response, responses=_PROMETHEUS)(self.prometheus)
        _add_problem_handlers(app)
        return app

    async def health(self) -> Health:
        """Return whether this manager leads and is connected to its broker."""
        return self.current_health()

    def current_health(self) -> Health:
        """Return the same, for the page in this process."""
        return Health(
            status="ok" if self._context.connection.is_connected else "no-broker",
            term=self._context.term,
            broker=self._context.connection.broker,
            problem=self._context.bus_reader.dropped_messages.problem,
            num_clients=self._context.bus_reader.fleet.num_here,
            num_active_runs=sum(not run.has_ended for run in self._context.open_runs),
        )

    async def prometheus(self) -> Response:
        """Return all metrics in Prometheus' text format."""
        return Response(await self._context.meters.exposition(), media_type=CONTENT_TYPE)

    async def list_clients(
        self,
        task_id: str | None = None,
        presence: Presence | None = None,
        status: ClientCondition | None = None,
        limit: Limit = MAX_PAGE,
        offset: Offset = 0,
    ) -> ClientPage:
        """List the clients, by task and MAC."""
        views = [
            view
            for (task, _), view in sorted(self._context.bus_reader.fleet.clients.items())
            if task_id in (None, task) and presence in (None, view.presence) and status in (None, view.status.status)
        ]
        page = views[offset : offset + limit]
        return ClientPage(items=[ClientRecord.of(view) for view in page], total=len(views))

    async def forget_client(self, client_mac: str, force: bool = False) -> Forgotten:
        """Clear what the broker retains of a client that is away for good; `force` one that seems to be here, too."""
        mac = normalise_mac(client_mac)
        return Forgotten(client_mac=mac, tasks=await self._run_service.forget(mac, is_forced=force))

    async def list_tasks(self) -> TaskPage:
        """List the tasks of the tasks file, and those with a published app."""
        self._context.tasks.refresh()
        tasks = [self._task(task_id) for task_id in sorted(self._context.tasks.by_id)]
        return TaskPage(items=tasks, total=len(tasks))

    async def list_runs(
        self, task_id: str | None = None, app_digest: str | None = None, limit: Limit = 50, offset: Offset = 0
    ) -> RunPage:
        """List the runs, newest first, each without its clients: `GET /runs/{run_id}` has them."""
        reader = self._context.journal.reader
        runs, total = await reader.call(
            reader.list_runs, task_id=task_id, app_digest=app_digest, limit=limit, offset=offset
        )
        return RunPage(items=[RunSummary.of(run, clients_by_status) for run, clients_by_status in runs], total=total)

    async def start_run(self, request: RunRequest) -> RunRecord:
        """Begin a run: its server is launched and its clients are triggered as soon as there are enough."""
        return RunRecord.of(await self._run_service.start(request))

    async def get_run(self, run_id: str) -> RunRecord:
        """Return a run's record."""
        return await self.history.run_record(run_id)

    async def stop_run(self, run_id: str, request: StopRequest | None = None) -> RunRecord:
        """Ask for a run's end; a run that has ended stays as it is."""
        return RunRecord.of(await self._run_service.stop(run_id, (request or StopRequest()).reason))

    def _task(self, task_id: str) -> TaskRecord:
        active = self._context.open_runs.active(task_id)
        here = sum(not view.is_out for view in self._context.bus_reader.fleet.of_task(task_id))
        return TaskRecord.of(
            task_id,
            self._context.tasks[task_id],
            self._context.apps.current.get(task_id),
            active_run=active.run_id if active else None,
            num_clients=here,
        )


def _add_problem_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ManagerError, _refuse)
    app.add_exception_handler(IdentityError, _refuse)
    app.add_exception_handler(AppRefusedError, _refuse_app)
    app.add_exception_handler(BusError, _no_bus)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OSError, _system)
    app.add_exception_handler(Exception, _fault)


Handler = Callable[[Request, Exception], Awaitable[JSONResponse]]


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    return problem(_STATUS_OF_ERROR.get(type(error), HTTPStatus.CONFLICT), str(error))


async def _refuse_app(_: Request, error: Exception) -> JSONResponse:
    is_too_large = isinstance(error, AppRefusedError) and error.code is ReasonCode.APP_TOO_LARGE
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if is_too_large else HTTPStatus.UNPROCESSABLE_ENTITY
    return problem(status, str(error))


async def _no_bus(_: Request, error: Exception) -> JSONResponse:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error))


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(HTTPStatus(error.status_code), str(error.detail), headers=dict(error.headers or {}))


async def _system(_: Request, error: Exception) -> JSONResponse:
    logger.error("a request failed", extra={"problem": str(error)})
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    status = HTTPStatus.INSUFFICIENT_STORAGE if is_full else HTTPStatus.INTERNAL_SERVER_ERROR
    return problem(status, f"on the manager's machine: {error}")


async def _fault(_: Request, error: Exception) -> JSONResponse:
    """It is raised again after this answer, so that the log has its traceback."""
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"a fault of the manager ({name_error(error)}); see its log")


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [{"where": ".".join(map(str, each["loc"])), "problem": each["msg"]} for each in error.errors()]
    detail = "; ".join(f"{each['where']}: {each['problem']}" for each in errors)
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)


def problem(
    status: HTTPStatus,
    detail: str,
    *,
    errors: list[dict[str, Any]] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return a problem document."""
    content = Problem(title=status.phrase, status=status, detail=detail, errors=errors).model_dump(exclude_none=True)
    return JSONResponse(content, status, headers=headers, media_type=_PROBLEM_TYPE)
