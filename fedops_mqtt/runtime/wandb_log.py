"""Weights & Biases beside a training or a run and never in its way: a bounded queue, and a thread that may hang.

wandb is imported when a W&B run is started. Off unless a project is set; its offline mode (`WANDB_MODE=offline`) needs
neither key nor network.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedops_mqtt.runtime.settings import ServerSettings

logger = logging.getLogger(__name__)

CLOSE_S = 5.0
"""For what is unsent at the end of a run; the rest is left out."""

_MAX_WAITING = 1000
"""Rounds that wait for a slow network; more are left out."""

Show = Callable[[Mapping[str, Any], int], None]


@contextmanager
def shown_on_wandb(settings: "ServerSettings", run_id: str, config: Mapping[str, Any] | None = None) -> Iterator[Show]:
    """Yield what shows numbers at a round; it neither blocks nor raises. `config` is what the run was made with."""
    if settings.wandb_project is None:
        yield lambda values, step: None
        return
    key = settings.wandb_key.get_secret_value() if settings.wandb_key else None
    begin = partial(start_wandb, key, settings.wandb_project, f"{run_id}-server")

    def start() -> Any:
        run = begin()
        run.config.update({"run_id": run_id, **(config or {})})
        return run

    wandb = WandbLog(start)
    try:
        yield wandb.log
    finally:
        if not wandb.close(CLOSE_S):
            logger.warning("wandb did not finish in time", extra={"run_id": run_id})


def start_wandb(
    wandb_key: str | None, wandb_project: str, wandb_name: str, config: Mapping[str, Any] | None = None
) -> Any:
    """Log in and start a run (FedOps client_wandb.start_wandb); without a key, wandb's own settings hold.

    `config` is what the run was made with.
    """
    import wandb

    if wandb_key:
        wandb.login(key=wandb_key)
    settings = wandb.Settings(console="off", silent=True)  # the training's output is its own
    return wandb.init(project=wandb_project, name=wandb_name, config=dict(config or {}), settings=settings)


class WandbLog:
    """Logs rounds to a run that `start` makes in a thread of its own; nothing here blocks or raises."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._waiting: queue.Queue[tuple[dict[str, Any], int] | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Show numbers at a round; left out when wandb is too slow or has failed."""
        try:
            self._waiting.put_nowait((dict(values), step))
        except queue.Full:
            logger.debug("wandb is behind, a round is left out", extra={"step": step})

    def close(self, timeout_s: float) -> bool:
        """Finish the run; returns whether that was done in time."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return False
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            run = self._start()
            while (item := self._waiting.get()) is not None:
                values, step = item
                run.log(values, step=step)
            run.finish()
        except Exception as error:  # wandb is foreign code that may not touch the training
            logger.warning("wandb failed, the training goes on", extra={"why": f"{type(error).__name__}: {error}"})
            self._drop_all()

    def _drop_all(self) -> None:
        while True:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                return
