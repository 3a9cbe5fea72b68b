"""The limits of a run, once: the manager's settings, a task's table, and the run itself are of this model."""

from typing import Annotated

from pydantic import BaseModel, Field


class RunLimits(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How long each part of a run may take before it counts as failed, s; and how often it is tried.

    Limits are finite: in the journal, which is JSON, an infinite one would be null.
    """

    trigger_answer_s: Annotated[float, Field(gt=0, description="a triggered client answers within this")] = 30.0
    trigger_retry_s: Annotated[float, Field(gt=0, description="an unanswered trigger is repeated after this")] = 5.0
    server_start_s: Annotated[float, Field(gt=0, description="a launched server is ready within this")] = 60.0
    join_s: Annotated[float, Field(gt=0, description="enough clients have joined within this")] = 120.0
    round_s: Annotated[float, Field(gt=0, description="one message to a client is answered within this")] = 3600.0
    run_s: Annotated[float, Field(gt=0, description="the whole run")] = 24 * 3600.0
    close_grace_s: Annotated[float, Field(gt=0, description="clients end by themselves before they are stopped")] = 10.0
    server_lost_s: Annotated[
        float, Field(gt=0, description="a server that answers on neither bus nor line is launched again")
    ] = 15.0
    max_launches: Annotated[int, Field(ge=1, description="launches of the FL server in one run")] = 3
    max_attempts: Annotated[int, Field(ge=1, description="firings per client in one run")] = 3

    def with_set(self, other: "RunLimits") -> "RunLimits":
        """Return these limits with those that were given explicitly in `other`."""
        return RunLimits(**{**self.model_dump(), **other.model_dump(exclude_unset=True)})
