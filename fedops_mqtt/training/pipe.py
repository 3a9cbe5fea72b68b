"""What the daemon and its training process say to each other, one JSON object a line.

Commands go down on stdin, the job first; reports come up on the pipe that was stdout. A token travels in the job only,
never in arguments or environment, where other users of the machine could read it.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from fedops_mqtt.protocol import MetricsKind, Outcome, Phase, RunId, Transport, clip
from fedops_mqtt.protocol.identity import Text
from fedops_mqtt.protocol.values import Count, Scalars

MAX_LINE_BYTES = 64 * 1024
"""A report longer than this is not one of ours and is dropped; the bus would not take it either."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WandbOptions(_Line):
    """Where the run is shown on Weights & Biases."""

    key: str | None = Field(default=None, repr=False)
    project: str
    name: str


class Job(_Line):
    """The first line: everything a training process needs to know."""

    command: Literal["start"] = "start"
    app: str
    live_task: int | None = None
    """Descriptor of a file with live objects in the place of an app (see `live_task`)."""
    import_paths: tuple[str, ...]
    """Folders to find the app's module in, before Python's own."""
    task_id: str
    client_mac: str
    client_name: str
    instance: str
    run_id: str
    attempt: int
    launch: int
    server_ip: str
    transport: Transport | None
    """None: find out what the server speaks."""
    token: str | None = Field(repr=False)
    gl_model: int
    num_clients: int
    is_local: bool
    state_folder: Path
    ca_file: Path | None
    join_limit_s: float
    rejoin_limit_s: float
    partition_id: int | None
    num_partitions: int | None
    node_config: Scalars = {}
    """More of `Context.node_config`."""
    run_config: Scalars
    """What the user's configuration says, for `Context.run_config`; values below a nested name are joined by dots."""
    wandb: WandbOptions | None


class Redirect(_Line):
    """The server was launched again and is somewhere else now."""

    command: Literal["aim"] = "aim"
    server_ip: str
    launch: int


class Stop(_Line):
    """The training is to end."""

    command: Literal["stop"] = "stop"
    reason: str


Command = Job | Redirect | Stop


class PhaseReport(_Line):
    """The training process is somewhere else in its round."""

    report: Literal["phase"] = "phase"
    phase: Phase
    round: Count = 0
    run_id: RunId | None = None
    bytes_in: Count = 0
    bytes_out: Count = 0
    detail: Text | None = None
    """What a phase that takes long is about, for people."""


class MetricsReport(_Line):
    """Numbers of one message that the app answered."""

    report: Literal["metrics"] = "metrics"
    kind: MetricsKind
    round: Count = 0
    values: Scalars


class EndedReport(_Line):
    """How it ended; `outcome` is None when the run was over before this client joined, or its app was refused."""

    report: Literal["ended"] = "ended"
    outcome: Outcome | None
    reason: Annotated[str | None, BeforeValidator(clip)] = None
    """Clipped to what a status takes: whatever an exception says, the report of it arrives."""
    reason_code: str | None = None


Report = PhaseReport | MetricsReport | EndedReport

_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="command")])
_REPORT: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="report")])


def parse_command(line: bytes | str) -> Command:
    """Return the command in a line.

    Raises:
        ValueError: there is none.
    """
    return _COMMAND.validate_json(line)


def parse_report(line: bytes) -> Report:
    """Return the report in a line.

    Raises:
        ValueError: there is none.
    """
    return _REPORT.validate_json(line)


def to_line(said: Command | Report) -> bytes:
    """Return the line, newline included, that says `said`."""
    return said.model_dump_json().encode() + b"\n"
