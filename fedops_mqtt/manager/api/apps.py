"""Published apps over HTTP: publish, list, look at one, go back to one, download a bundle."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from fedops_mqtt.apps import AppSignature
from fedops_mqtt.manager.api.app_models import AppDetails, AppFile, AppPage, AppRecord, RollbackRequest
from fedops_mqtt.manager.api.models import Problem, RunSummary
from fedops_mqtt.manager.app_store import PublishedApp
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.protocol import TaskId
from fedops_mqtt.runtime.http_access import FILE_TYPE

MAX_SHOWN_RUNS = 1000
_ZIP = FILE_TYPE.decode()


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {_ZIP: {"schema": {"type": "string", "format": "binary"}, "example": "what `flwr build` makes"}},
    }
}
_BUNDLE_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bundle, a zip.",
        "content": {_ZIP: {"schema": {"type": "string", "format": "binary"}, "example": "…"}},
    }
}


class AppsApi:
    """The endpoints."""

    def __init__(self, context: ManagerContext) -> None:
        self._context = context
        self._apps = context.apps
        self._reader = context.journal.reader

    def add_to(self, app: FastAPI, prefix: str) -> None:
        """Add the endpoints."""
        app.get(prefix + "/tasks/{task_id}/apps")(self.list_apps)
        app.post(
            prefix + "/tasks/{task_id}/apps",
            status_code=HTTPStatus.CREATED,
            responses={413: {"model": Problem}, 422: {"model": Problem}},
            openapi_extra=_BODY,
        )(self.publish)
        app.post(prefix + "/tasks/{task_id}/apps/rollback")(self.roll_back)
        app.delete(prefix + "/tasks/{task_id}/apps/current")(self.withdraw)
        app.get(prefix + "/apps/{digest}")(self.get_app)
        app.get(prefix + "/apps/{digest}/bundle", response_class=FileResponse, responses=_BUNDLE_FILE)(self.download)

    async def list_apps(self, task_id: TaskId) -> AppPage:
        """List the versions of a task's app, newest first."""
        found = await self._reader.call(self._apps.versions, task_id)
        return AppPage(items=[AppRecord.of(each) for each in found], total=len(found))

    async def publish(
        self,
        request: Request,
        task_id: TaskId,
        key_id: Annotated[str | None, Query(pattern="^[0-9a-f]{16}$")] = None,
        signature: Annotated[str | None, Query(max_length=88)] = None,
    ) -> AppRecord:
        """Make a bundle, as `flwr build` makes them, the current version of a task's app; the body is the file."""
        if (key_id is None) != (signature is None):
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "key_id and signature go together")
        signed = AppSignature(key_id=key_id, signature=signature) if key_id and signature else None
        app = await self._apps.publish(
            await request.body(),  # the access control limits its size
            task_id,
            signed,
            at=self._context.clock.now(),
            in_use=lambda: [run.spec.app.digest for run in self._context.open_runs if run.spec.app],
        )
        return self._noted(app)

    async def roll_back(self, task_id: TaskId, request: RollbackRequest | None = None) -> AppRecord:
        """Make an earlier version of a task's app current again; runs that go on keep theirs."""
        return self._noted(await self._apps.roll_back(task_id, (request or RollbackRequest()).version))

    async def withdraw(self, task_id: TaskId) -> AppRecord:
        """Leave a task without a current app: its next run uses the devices' own app and the tasks file."""
        return self._noted(await self._apps.withdraw(task_id))

    async def get_app(self, digest: str) -> AppDetails:
        """Return a bundle's details: its tasks, its files, and the runs that trained with it."""
        published = await self._reader.call(self._apps.publications, digest)
        bundle = await self._reader.call(self._apps.read, digest)
        runs, _ = await self._reader.call(self._reader.list_runs, app_digest=digest, limit=MAX_SHOWN_RUNS)
        return AppDetails(
            published=[AppRecord.of(each) for each in published],
            files=[AppFile(path=each.path, sha256=each.sha256, size=each.size) for each in bundle.files],
            runs=[RunSummary.of(run, clients_by_status) for run, clients_by_status in runs],
        )

    async def download(self, digest: str) -> FileResponse:
        """Return a bundle."""
        path = await self._reader.call(self._apps.fetch, digest)
        return FileResponse(path, filename=path.name, media_type=_ZIP)

    def _noted(self, app: PublishedApp) -> AppRecord:
        """Return the record of an app that has changed, and publish the change to those who follow the events."""
        record = AppRecord.of(app)
        self._context.events.note_app(record)
        return record
