"""How a run ended, as `FLServer.start` returns it."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedops_mqtt.protocol import RunOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended; `model_path` is where its global model was saved, None where no round was done."""

    outcome: RunOutcome
    reason: str
    run_id: str
    round: int
    metrics: Mapping[str, float]
    gl_model: int
    model_path: str | None
