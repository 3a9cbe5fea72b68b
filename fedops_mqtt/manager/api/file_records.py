"""What the API says of what runs leave: rows of the journal, model files, logs."""

from datetime import datetime
from typing import Any

from fedops_mqtt.manager.api import examples
from fedops_mqtt.manager.api.models import Record, shown, to_utc
from fedops_mqtt.manager.files import ListedModel
from fedops_mqtt.protocol import count_of, number_of
from fedops_mqtt.runtime.key_values import Plain


class History(Record):
    """Rows of the journal."""

    model_config = shown(examples.HISTORY)

    items: list[dict[str, Any]]


class ModelRecord(Record):
    """One version of a task's global model; its server wrote into it what made it: run, round, app, settings."""

    model_config = shown(examples.MODEL)

    task_id: str
    file_name: str
    model_name: str
    version: int
    size_bytes: int
    saved_at: datetime
    run_id: str | None
    round: int
    metrics: dict[str, float | None]
    app_digest: str | None
    """Of the published app that made it."""
    app_version: str | None
    run_config: dict[str, Plain | None]
    """The settings of the run that made it."""

    @classmethod
    def of(cls, file: ListedModel, task_id: str) -> "ModelRecord":
        """Return what is said of a file."""
        facts = file.facts
        return cls(
            task_id=task_id,
            file_name=file.path.name,
            model_name=file.model_name,
            version=file.version,
            size_bytes=file.size_bytes,
            saved_at=to_utc(file.saved_at),
            run_id=facts.get("run_id"),
            round=count_of(facts.get("round")),
            metrics={name: number_of(value) for name, value in dict(facts.get("metrics") or {}).items()},
            app_digest=facts.get("app_digest"),
            app_version=facts.get("app_version"),
            run_config=dict(facts.get("run_config") or {}),
        )


class ModelPage(Record):
    """The versions of a task's global model, newest first."""

    model_config = shown(examples.page(examples.MODEL))

    items: list[ModelRecord]
    total: int


class LogPart(Record):
    """A part of the log of an FL server; `is_over`: this launch says nothing more."""

    model_config = shown(examples.LOG)

    run_id: str
    launch: int
    text: str
    next_offset: int
    is_over: bool
