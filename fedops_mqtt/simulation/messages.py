"""What a simulation and its worker processes say to each other: one line down, a line for each client up."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from fedops_mqtt.protocol import Outcome, clip
from fedops_mqtt.training.pipe import Job


class Work(BaseModel):
    """What a worker is told, in one line on stdin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: tuple[Job, ...]
    """One for each client that it plays."""


class Result(BaseModel):
    """How it ended for one client, in one line on stdout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_mac: str
    outcome: Outcome
    reason: Annotated[str, BeforeValidator(clip)]
