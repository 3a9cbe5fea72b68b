"""How a run ended, as `FLServer.start` returns it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedops_mqtt.aggregation.errors import ServerError
from fedops_mqtt.aggregation.rounds import Rounds
from fedops_mqtt.protocol import RunOutcome
from fedops_mqtt.store.errors import StoreError
from fedops_mqtt.store.versions import ModelStore, StoredModel


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


_log = logging.getLogger(__name__)


def save_model(
    store: ModelStore,
    rounds: Rounds,
    *,
    run_id: str,
    outcome: RunOutcome,
    reason: str,
    made_with: Mapping[str, Any] | None = None,
) -> tuple[StoredModel | None, RunOutcome, str]:
    """Store the model of the last whole round; return it, and how the run ended with that.

    A model that is not finite, or of a failed run, never becomes a version: the next run would begin from it.
    """
    if rounds.arrays is None:
        return None, outcome, reason
    if problem := rounds.nonfinite_in(rounds.arrays):
        failure = f"the global model of round {rounds.done} is not finite: {problem}"
        outcome, reason = RunOutcome.FAILED, reason if outcome is RunOutcome.FAILED else failure
    facts: dict[str, Any] = {"run_id": run_id, "round": rounds.done, "metrics": rounds.metrics}
    facts["made_with"] = made_with
    try:
        if outcome is RunOutcome.FAILED:
            saved = store.save_failed(rounds.arrays, **facts)
        else:
            saved = store.save(rounds.arrays, outcome=outcome, **facts)
    except (ServerError, StoreError, OSError) as error:
        _log.error("global model was not saved", extra={"problem": str(error)})
        failure = f"global model was not saved: {error}"
        return None, RunOutcome.FAILED, f"{reason}; {failure}" if outcome is RunOutcome.FAILED else failure
    return saved, outcome, reason
