"""The API's records and requests about published apps; documented by its OpenAPI."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from fedops_mqtt.manager.api.models import Items, Record, RunSummary, to_utc
from fedops_mqtt.runtime.key_values import Plain

if TYPE_CHECKING:
    from fedops_mqtt.manager.app_store import PublishedApp


class AppRecord(Record):
    """One version of a task's app."""

    task_id: str
    digest: str
    """SHA-256 of the bundle."""
    version: str
    publisher: str
    name: str
    size: int
    """Bytes of the bundle."""
    is_current: bool
    """The next run of the task trains with it."""
    published_at: datetime
    key_id: str | None
    """Which key signed it; None: it is not signed."""
    client_app: str | None
    server_app: str | None
    requires: Items[str]
    config: dict[str, Plain | None]
    """The project's `[tool.flwr.app.config]`."""

    @classmethod
    def of(cls, app: "PublishedApp") -> "AppRecord":
        """Return a version's record."""
        bundle = app.bundle
        return cls(
            task_id=app.task_id,
            digest=bundle.digest,
            version=bundle.version,
            publisher=bundle.publisher,
            name=bundle.name,
            size=bundle.size,
            is_current=app.is_current,
            published_at=to_utc(app.published_at),
            key_id=app.signature.key_id if app.signature else None,
            client_app=bundle.client_app,
            server_app=bundle.server_app,
            requires=list(bundle.requires),
            config=dict(bundle.config),
        )


class AppPage(Record):
    """The versions of a task's app, newest first."""

    items: Items[AppRecord]
    total: int


class AppFile(Record):
    """One file of a bundle; `size` is in bytes."""

    path: str
    sha256: str
    size: int


class AppDetails(Record):
    """A bundle: as which tasks' app it was published, its files, and the newest runs that trained with it."""

    published: Items[AppRecord]
    files: Items[AppFile]
    runs: Items[RunSummary]


class RollbackRequest(BaseModel):
    """Which version is wanted; without one that before the current."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """A version, or a digest."""
