"""Weights & Biases on the server: each round's numbers, beside the run and never in its way (see client_wandb).

Off unless a project is set; wandb's offline mode (`WANDB_MODE=offline`) needs neither key nor network.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from fedops_mqtt.client.client_wandb import WandbLog, start_wandb
from fedops_mqtt.runtime.settings import ServerSettings

_log = logging.getLogger(__name__)

CLOSE_S = 5.0
"""For what is unsent at the end of a run; the rest is left out."""

Show = Callable[[Mapping[str, Any], int], None]


@contextmanager
def shown_on_wandb(settings: ServerSettings, run_id: str) -> Iterator[Show]:
    """Yield what shows numbers at a round; it neither blocks nor raises."""
    if settings.wandb_project is None:
        yield lambda values, step: None
        return
    key = settings.wandb_key.get_secret_value() if settings.wandb_key else None
    wandb = WandbLog(partial(start_wandb, key, settings.wandb_project, f"{run_id}-server"))
    try:
        yield wandb.log
    finally:
        if not wandb.close(CLOSE_S):
            _log.warning("wandb did not finish in time", extra={"run_id": run_id})
