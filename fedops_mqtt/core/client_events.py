"""What happens to a client and what its daemon is to do about it: values, nothing else.

Events are in the past tense or what somebody asked for; actions are orders to the daemon.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedops_mqtt.protocol import Answer, AppReference, Outcome, Phase, StartTrigger, StopTrigger, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStart:
    """Somebody on this device asked for a training at a server (`POST /start`)."""

    server_ip: str
    gl_model: int | None = None
    """Number of the global model as a FedOps client manager gives it; None: as the last start gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """The training process says where it is; `run_id` is what the server calls the run, once that is known."""

    phase: Phase
    round: int
    run_id: str | None = None
    detail: str | None = None
    """What a phase that takes long is about, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnded:
    """The training process is gone; `outcome` is None when the run was over before it could join, or never began."""

    run_id: str
    attempt: int
    outcome: Outcome | None
    reason: str | None = None
    reason_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownRequested:
    """The daemon is about to end: nothing new is started, what trains is interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutDown:
    """The next status is the last; what still trained is interrupted."""

    reason: str


Event = StartTrigger | StopTrigger | LocalStart | Progressed | TrainingEnded | ShutdownRequested | ShutDown


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTraining:
    """Start a training process; `transport` None means: find out what the server speaks."""

    run_id: str
    attempt: int
    launch: int
    server_ip: str
    transport: Transport | None
    token: str | None = field(repr=False)
    gl_model: int
    num_clients: int
    is_local: bool
    app: AppReference | None = None
    """The delivered app to train with; None: the device's own."""
    run_config: Mapping[str, bool | int | float | str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMoved:
    """Tell the training process that its server is somewhere else now."""

    server_ip: str
    launch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTraining:
    """End the training process."""

    reason: str


Action = StartTraining | ServerMoved | StopTraining


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDecision:
    """The answer to a start."""

    answer: Answer
    reason: str | None = None
    reason_code: str | None = None
