"""The limits of a run, once: the manager's settings, a task's table, and the run itself are of this model."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from fedops_mqtt.protocol.values import MAX_LIMIT_S

_Limit = Annotated[float, Field(gt=0), AfterValidator(lambda limit_s: min(limit_s, MAX_LIMIT_S))]


class RunLimits(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How long each part of a run may take before it counts as failed, s; and how often it is tried.

    Limits are finite: in the journal, which is JSON, an infinite one would be null. One over ten years, as people write
    it for none, is ten years: that is as long as an FL server takes.
    """

    trigger_answer_s: Annotated[_Limit, Field(description="a triggered client answers within this")] = 30.0
    trigger_retry_s: Annotated[_Limit, Field(description="an unanswered trigger is repeated after this")] = 5.0
    server_start_s: Annotated[_Limit, Field(description="a launched server is ready within this")] = 60.0
    join_s: Annotated[_Limit, Field(description="enough clients have joined within this")] = 120.0
    round_s: Annotated[_Limit, Field(description="one message to a client is answered within this")] = 3600.0
    run_s: Annotated[_Limit, Field(description="the whole run")] = 24 * 3600.0
    close_grace_s: Annotated[_Limit, Field(description="clients end by themselves before they are stopped")] = 10.0
    server_lost_s: Annotated[
        _Limit, Field(description="a server that answers on neither bus nor line is launched again")
    ] = 15.0
    max_launches: Annotated[int, Field(ge=1, description="launches of the FL server in one run")] = 3
    max_attempts: Annotated[int, Field(ge=1, description="firings per client in one run")] = 3

    def with_set(self, other: "RunLimits") -> "RunLimits":
        """Return these limits with those that were given explicitly in `other`."""
        return RunLimits(**{**self.model_dump(), **other.model_dump(exclude_unset=True)})
