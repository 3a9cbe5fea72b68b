"""Every message of protocol v1 as a frozen model; each is a full snapshot or a whole command, never a delta.

What we send has no unknown fields; what we receive may have them (a newer speaker), see `wire`.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fedops_mqtt.protocol.identity import MacAddress, Reason, RunId, TaskId, Text
from fedops_mqtt.protocol.reason_code import KnownCode
from fedops_mqtt.protocol.values import (
    LAST_SEQ,
    MAX_MEMBERS,
    MEASURED,
    Address,
    Config,
    Count,
    Digest,
    Metrics,
    Number,
    Scalars,
    Seq,
    Timestamp,
    bounded,
)


class WireModel(BaseModel):
    """Part of a message: frozen, no unknown fields when made by us."""

    # A daemon has use for six of the fourteen: each is built when it is first read or written.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class ClientCondition(StrEnum):
    """The five values of a client's `status`."""

    ONLINE = "online"
    TRAIN_STARTED = "train-started"
    TRAIN_FINISHED = "train-finished"
    TRAIN_FAILED = "train-failed"
    CLIENT_OUT = "client-out"


class ServerCondition(StrEnum):
    """The values of an FL server's `status`."""

    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    SERVER_OUT = "server-out"

    @property
    def is_final(self) -> bool:
        """True when this server has published how its run ended."""
        return self in (ServerCondition.FINISHED, ServerCondition.FAILED, ServerCondition.STOPPED)


class ManagerCondition(StrEnum):
    """The values of a manager's `status`."""

    LEADING = "leading"
    MANAGER_OUT = "manager-out"


class Phase(StrEnum):
    """What a training process is doing right now."""

    STARTING = "starting"
    JOINING = "joining"
    DOWNLOADING = "downloading"
    TRAINING = "training"
    UPLOADING = "uploading"
    EVALUATING = "evaluating"
    WAITING = "waiting"


class Outcome(StrEnum):
    """How one client's training ended."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class Answer(StrEnum):
    """A client's answer to a start trigger."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


class RunCondition(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"


class RunOutcome(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


class MemberCondition(StrEnum):
    """Where one client stands in a run."""

    CHOSEN = "chosen"
    TRIGGERED = "triggered"
    TRAINING = "training"
    FINISHED = "finished"
    FAILED = "failed"
    REJECTED = "rejected"
    LOST = "lost"
    STOPPED = "stopped"


class Transport(StrEnum):
    """How a client reaches the FL server."""

    LINE = "line"
    GRPC = "grpc"


class CurrentRun(WireModel):
    """The run that a client is training."""

    run_id: RunId
    attempt: Count
    launch: Count
    phase: Phase
    round: Count = 0


class LastRun(WireModel):
    """How the last training on this client ended."""

    run_id: RunId
    attempt: Count
    outcome: Outcome
    reason: Reason | None = None
    reason_code: KnownCode = None
    """`interrupted` where the training may be tried again; it decides that, not the text."""


class LastTrigger(WireModel):
    """A client's answer to the last start trigger it read."""

    run_id: RunId
    attempt: Count
    launch: Count
    answer: Answer
    reason: Reason | None = None
    reason_code: KnownCode = None
    """`reason` as one code for programs, where it has one; docs/protocol.md lists them."""


class OwnedStatus(WireModel):
    """What every retained status carries for fencing: the owner of the topic, and this status's place in its order."""

    instance: Text
    epoch: Count
    seq: Seq = LAST_SEQ
    """Absent in a last will, which is frozen at CONNECT and cannot know it."""
    at: Timestamp
    heartbeat_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """How often its owner repeats it; a reader's lease is three times this."""


class ClientStatus(OwnedStatus):
    """A client's whole condition; a will carries the identity and `client-out` only."""

    status: ClientCondition
    reason: Reason | None = None
    task_id: TaskId
    client_mac: MacAddress
    client_name: Text = ""
    run: CurrentRun | None = None
    last_run: LastRun | None = None
    last_trigger: LastTrigger | None = None
    server_ip: Address | None = None
    gl_model: Count = 0
    agent: Annotated[dict[Text, Text], Field(max_length=32)] = {}


class AppReference(WireModel):
    """Which app bundle a run trains with; the bundle itself is at the FL server, `GET /app/{digest}`."""

    digest: Digest
    """SHA-256 of the bundle."""
    version: Text
    """The project's version (PEP 440); the signature covers it."""
    size: Count
    """Bytes of the bundle as it travels."""
    key_id: Text | None = None
    """Which key signed it; absent where it is unsigned."""
    signature: Text | None = None
    """Ed25519 over digest, task and version, as base64."""


class RunStart(WireModel):
    """What one client's training in a run is started with; the part of a start trigger that its process needs."""

    run_id: RunId
    attempt: Count
    launch: Count
    server_ip: Address
    transport: Transport | None = None
    """None where a program on the device asks for the start: the server that answers says its transport and run id."""
    token: Text | None = Field(default=None, repr=False)
    gl_model: Count = 0
    app: AppReference | None = None
    """The delivered app to train with; absent: the app that the device has of its own."""
    run_config: Config | None = None
    """Settings of this run for the app; they outweigh those of the project and of the device."""


class StartTrigger(RunStart):
    """The manager's command to one client: join this run at this FL server."""

    transport: Transport = Transport.LINE
    term: Count
    task_id: TaskId
    client_mac: MacAddress
    instance: Text | None = None
    num_clients: Count = 0
    at: Timestamp


class StopTrigger(WireModel):
    """The manager's command to one client: end this run's training, or do not start it."""

    run_id: RunId
    attempt: Count
    term: Count
    task_id: TaskId
    client_mac: MacAddress
    reason: Reason | None = None
    at: Timestamp


class MetricsKind(StrEnum):
    """What a metrics message is about; the FedOps calls are named in `client_api`."""

    ROUND = "round"
    PROGRESS = "progress"
    TRAIN_RESULT = "train-result"
    TEST_RESULT = "test-result"
    TIME_RESULT = "time-result"
    SYSTEM = "system"
    DATA = "data"


class ClientMetrics(WireModel):
    """Numbers from one client; `values` keeps the sender's own field names."""

    kind: MetricsKind
    task_id: TaskId
    client_mac: MacAddress
    instance: Text
    run_id: RunId | None = None
    attempt: Count = 0
    round: Count = 0
    values: Scalars = {}
    at: Timestamp

    @field_validator("values")
    @classmethod
    def _check_numbers(cls, values: dict[str, object]) -> dict[str, object]:
        for name in MEASURED & values.keys():
            if isinstance(values[name], str):
                raise ValueError(f"{name} is a text, expected a number or null")
        return values


class ServerClient(WireModel):
    """What the FL server reports of one client in its run."""

    status: MemberCondition
    attempt: Count = 0
    phase: Phase | None = None
    round: Count = 0
    reason: Reason | None = None
    reason_code: KnownCode = None


class ServerStatus(OwnedStatus):
    """An FL server's whole condition and each client's outcome in its run; as a will only who and `server-out`."""

    status: ServerCondition
    reason: Reason | None = None
    reason_code: KnownCode = None
    task_id: TaskId
    run_id: RunId | None = None
    launch: Count = 0
    server_ip: Address | None = None
    transport: Transport = Transport.LINE
    round: Count = 0
    num_rounds: Count = 0
    gl_model: Count = 0
    metrics: Metrics = {}
    model_path: Text | None = None
    clients: Annotated[dict[MacAddress, ServerClient], Field(max_length=MAX_MEMBERS), bounded(MAX_MEMBERS)] = {}
    agent: Annotated[dict[Text, Text], Field(max_length=32), bounded(32)] = {}


class ServerMetrics(WireModel):
    """Numbers of one round from the FL server; round 0 is the model before training."""

    task_id: TaskId
    run_id: RunId
    launch: Count = 0
    round: Count
    metrics: Metrics = {}
    duration_s: Number = None
    bytes_in: Count = 0
    bytes_out: Count = 0
    gl_model: Count = 0
    at: Timestamp


class RunMember(WireModel):
    """One client in a run, as the manager sees it."""

    status: MemberCondition
    attempt: Count = 0
    reason: Reason | None = None


class RunStatus(OwnedStatus):
    """A run's whole condition, published by the manager."""

    run_id: RunId
    task_id: TaskId
    status: RunCondition
    outcome: RunOutcome | None = None
    reason: Reason | None = None
    term: Count = 0
    launch: Count = 0
    server_ip: Address | None = None
    round: Count = 0
    num_rounds: Count = 0
    min_clients: Count = 0
    gl_model: Count = 0
    metrics: Metrics = {}
    model_path: Text | None = None
    clients: Annotated[dict[MacAddress, RunMember], Field(max_length=MAX_MEMBERS), bounded(MAX_MEMBERS)] = {}
    clients_by_status: dict[MemberCondition, Count] = {}
    """How many of them stand where, those included whom `clients` has no room for."""
    created_at: Timestamp
    ended_at: Timestamp | None = None


class ManagerStatus(OwnedStatus):
    """The leading manager's condition."""

    status: ManagerCondition
    reason: Reason | None = None
    term: Count = 0
    url: Text | None = None
    agent: Annotated[dict[Text, Text], Field(max_length=32), bounded(32)] = {}


Message = (
    ClientStatus | StartTrigger | StopTrigger | ClientMetrics | ServerStatus | ServerMetrics | RunStatus | ManagerStatus
)
StatusMessage = ClientStatus | ServerStatus | RunStatus | ManagerStatus
