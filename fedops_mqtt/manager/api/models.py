"""The API's records and requests, version 1; documented by its OpenAPI."""

from collections.abc import Mapping
from datetime import UTC, datetime
from statistics import median_high
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field

from fedops_mqtt.core.fleet import ClientView, Presence
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import Member
from fedops_mqtt.manager.run_record import count_members
from fedops_mqtt.manager.tasks import TaskConfig
from fedops_mqtt.protocol import (
    AnyMacAddress,
    ClientCondition,
    CurrentRun,
    LastRun,
    LastTrigger,
    MemberCondition,
    Phase,
    RunCondition,
    RunOutcome,
    TaskId,
)
from fedops_mqtt.protocol.values import Config
from fedops_mqtt.runtime.key_values import Plain, format_pairs

if TYPE_CHECKING:
    from fedops_mqtt.manager.app_store import PublishedApp


from fedops_mqtt.manager.files import ListedModel
from fedops_mqtt.protocol import count_of, number_of

MAX_NAMED_CLIENTS = 20_000
MAX_CONFIG_BYTES = 32_000
"""Of a run's configuration as one line in UTF-8: it travels in an environment variable and in every trigger."""


Item = TypeVar("Item")
Items = Annotated[list[Item], FailFast()]
"""In an answer. Whoever reads one that is no manager's gets the first of its faults, not gigabytes of them."""


class Record(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(frozen=True)


class ClientRecord(Record):
    """One client in the manager's view; `since` and `heard_at` are by the manager's clock."""

    task_id: str
    client_mac: str
    client_name: str
    presence: Presence
    status: ClientCondition
    reason: str | None
    since: datetime
    heard_at: datetime
    instance: str
    run: CurrentRun | None
    last_run: LastRun | None
    last_trigger: LastTrigger | None
    server_ip: str | None
    gl_model: int
    agent: dict[str, str]

    @classmethod
    def of(cls, view: ClientView) -> "ClientRecord":
        """Return a client's record."""
        status = view.status
        return cls(
            task_id=status.task_id,
            client_mac=status.client_mac,
            client_name=status.client_name,
            presence=view.presence,
            status=status.status,
            reason=view.out_reason or status.reason,
            since=to_utc(view.since),
            heard_at=to_utc(view.heard_at),
            instance=status.instance,
            run=status.run,
            last_run=status.last_run,
            last_trigger=status.last_trigger,
            server_ip=status.server_ip,
            gl_model=status.gl_model,
            agent=status.agent,
        )


class ClientPage(Record):
    """Some of the clients."""

    items: Items[ClientRecord]
    total: int


class Delay(Record):
    """From a client's first trigger to its training process having joined the server, ms."""

    p50: float
    max: float


class MemberRecord(Record):
    """One client in a run."""

    status: MemberCondition
    attempt: int
    reason: str | None
    phase: Phase | None
    round: int
    trigger_to_training_ms: float | None

    @classmethod
    def of(cls, member: Member) -> "MemberRecord":
        """Return a member's record."""
        return cls(
            status=member.status,
            attempt=member.attempt,
            reason=member.reason,
            phase=member.phase,
            round=member.round,
            trigger_to_training_ms=_delay_ms(member),
        )


class RunFacts(Record):
    """What `RunSummary` and `RunRecord` have in common; times by the manager's clock."""

    run_id: str
    task_id: str
    status: RunCondition
    outcome: RunOutcome | None
    reason: str | None
    created_at: datetime
    ended_at: datetime | None
    num_rounds: int
    min_clients: int
    join: Literal["invited", "open"]
    app_digest: str | None
    """Of the published app that it trains with."""
    app_version: str | None
    run_config: dict[str, Plain | None]
    """Settings of this run for its app."""
    is_adopted: bool
    is_stopping: bool
    launch: int
    server_ip: str | None
    round: int
    gl_model: int
    metrics: dict[str, float | None]
    model_path: str | None
    clients_by_status: dict[MemberCondition, int]
    """How many of its clients stand where."""

    @staticmethod
    def facts(run: Run) -> dict[str, Any]:
        """Return the common fields of a run."""
        server = run.server
        return {
            "run_id": run.run_id,
            "task_id": run.spec.task_id,
            "status": run.status,
            "outcome": run.outcome,
            "reason": run.reason,
            "created_at": to_utc(run.created_at),
            "ended_at": to_utc(run.ended_at) if run.ended_at is not None else None,
            "num_rounds": run.num_rounds,
            "min_clients": run.spec.min_clients,
            "join": run.spec.join,
            **made_with(run),
            "is_adopted": run.spec.is_adopted,
            "is_stopping": run.stop_reason is not None and not run.has_ended,
            "launch": run.launch,
            "server_ip": run.server_ip,
            "round": server.round if server else 0,
            "gl_model": server.gl_model if server else 0,
            "metrics": dict(server.metrics) if server else {},
            "model_path": server.model_path if server else None,
        }


class RunSummary(RunFacts):
    """A run without its clients, of whom there may be thousands; times by the manager's clock."""

    @classmethod
    def of(cls, run: Run, clients_by_status: Mapping[str, int]) -> "RunSummary":
        """Return the summary of a run that was read without its members."""
        return cls(**cls.facts(run), clients_by_status=clients_by_status)


class RunRecord(RunFacts):
    """A run and each of its clients; times by the manager's clock."""

    trigger_to_training_ms: Delay | None
    clients: dict[str, MemberRecord]

    @classmethod
    def of(cls, run: Run) -> "RunRecord":
        """Return a run's record."""
        return cls(
            **cls.facts(run),
            clients_by_status=count_members(run),
            trigger_to_training_ms=trigger_to_training(run),
            clients={mac: MemberRecord.of(member) for mac, member in sorted(run.members.items())},
        )


class RunPage(Record):
    """Some of the runs, newest first."""

    items: Items[RunSummary]
    total: int


def _sayable(config: dict[str, Plain]) -> dict[str, Plain]:
    num_bytes = len(format_pairs(config).encode())
    if num_bytes > MAX_CONFIG_BYTES:
        raise ValueError(f"it has {num_bytes:,} bytes as UTF-8, at most {MAX_CONFIG_BYTES:,} are taken")
    return config


class RunRequest(BaseModel):
    """A run to start; what is left out is taken from the tasks file."""

    model_config = ConfigDict(extra="forbid")

    task_id: TaskId
    num_rounds: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    min_clients: Annotated[int, Field(ge=1, le=MAX_NAMED_CLIENTS)] | None = None
    clients: Annotated[list[AnyMacAddress], Field(min_length=1, max_length=MAX_NAMED_CLIENTS)] | None = None
    join: Literal["invited", "open"] | None = None
    run_config: Annotated[Config, AfterValidator(_sayable)] = {}
    """Settings of this run for its app."""


class StopRequest(BaseModel):
    """Why a run is stopped."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(min_length=1, max_length=500)] = "stopped by request"


class TaskRecord(Record):
    """A task of the tasks file, or one with a published app."""

    task_id: str
    is_launchable: bool
    adopt: bool
    num_rounds: int | None
    """None: the server's own number."""
    min_clients: int
    join: Literal["invited", "open"]
    app_digest: str | None
    app_version: str | None
    active_run: str | None
    num_clients: int

    @classmethod
    def of(
        cls, task_id: str, config: TaskConfig, app: "PublishedApp | None", *, active_run: str | None, num_clients: int
    ) -> "TaskRecord":
        """Return the record of a task and its current app."""
        return cls(
            task_id=task_id,
            is_launchable=config.is_launchable or bool(app and app.bundle.server_app),
            adopt=config.adopt,
            num_rounds=config.num_rounds,
            min_clients=config.min_clients,
            join=config.join,
            app_digest=app.bundle.digest if app else None,
            app_version=app.bundle.version if app else None,
            active_run=active_run,
            num_clients=num_clients,
        )


class TaskPage(Record):
    """Every task."""

    items: Items[TaskRecord]
    total: int


class Forgotten(Record):
    """A client whose retained status was cleared, and the tasks it was known in."""

    client_mac: str
    tasks: list[str]


class Health(Record):
    """Whether this manager can work."""

    status: Literal["ok", "no-broker"]
    role: Literal["leading"] = "leading"
    term: int
    broker: str
    problem: str | None = None
    """What is wrong though it works: the broker drops messages."""
    num_clients: int
    num_active_runs: int


class Problem(Record):
    """Why a request was not answered as wished (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None


def trigger_to_training(run: Run) -> Delay | None:
    """Return how long the run's clients took from trigger to training; None while none has begun."""
    delays = [delay for member in run.members.values() if (delay := _delay_ms(member)) is not None]
    return Delay(p50=median_high(delays), max=max(delays)) if delays else None


def made_with(run: Run) -> dict[str, Any]:
    """Return the app and the settings that a run, and the models of it, were made with."""
    app = run.spec.app
    return {
        "app_digest": app.digest if app else None,
        "app_version": app.version if app else None,
        "run_config": dict(run.spec.run_config),
    }


def to_utc(at: float) -> datetime:
    """Return a time of the manager's clock as a datetime."""
    return datetime.fromtimestamp(at, UTC)


def _delay_ms(member: Member) -> float | None:
    if member.first_fired_at is None or member.training_at is None:
        return None
    return round((member.training_at - member.first_fired_at) * 1000, 1)


class History(Record):
    """Rows of the journal."""

    items: list[dict[str, Any]]


class ModelRecord(Record):
    """One version of a task's global model; its server wrote into it what made it: run, round, app, settings."""

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
        """Return a file's record."""
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

    items: Items[ModelRecord]
    total: int


class LogPart(Record):
    """A part of the log of an FL server; `is_over`: the log is complete."""

    run_id: str
    launch: int
    text: str
    next_offset: int
    is_over: bool
