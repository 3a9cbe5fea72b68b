"""The one training that a daemon has at a time: made from a start and the settings, steered, and reported."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedops_mqtt.core.client import Identity
from fedops_mqtt.core.client_state import ServerMoved, StartTraining, StopTraining
from fedops_mqtt.device.training_process import MODULE, TrainingOptions, TrainingProcess
from fedops_mqtt.protocol import Outcome, RunStart, utc_now
from fedops_mqtt.runtime.key_values import parse_pairs
from fedops_mqtt.runtime.settings import ClientSettings
from fedops_mqtt.training.pipe import EndedReport, Job, MetricsReport, PhaseReport, WandbOptions

if TYPE_CHECKING:
    from fedops_mqtt.device.app_delivery import AppDelivery, DeliveredApp

logger = logging.getLogger(__name__)

Scalar = bool | int | float | str | None


class AnyTrainer(Protocol):
    """What a daemon needs of whatever trains: `Trainer`, or the bridge's, which has a FedOps client do it."""

    def start(self, started: StartTraining, group: asyncio.TaskGroup) -> None:
        """Start a training as a task of `group`."""
        ...

    def steer(self, action: ServerMoved | StopTraining) -> None:
        """Pass a change of address or a stop on."""
        ...

    async def wait_idle(self) -> None:
        """Wait until nothing trains and the end of the last training was taken in."""
        ...


class MakeTrainer(Protocol):
    """Makes what trains; called once, by the daemon."""

    def __call__(
        self,
        *,
        identity: Identity,
        settings: ClientSettings,
        folder: Path,
        import_paths: Sequence[str],
        run_config: Mapping[str, Scalar],
        on_report: Callable[[PhaseReport | MetricsReport], None],
        on_ended: Callable[[EndedReport], Awaitable[None]],
    ) -> AnyTrainer:
        """Return a trainer for this client."""
        ...


class Trainer:
    """Starts, steers and ends trainings; `on_ended` is awaited when no process of one is left.

    `run_config` is what apps find in `Context.run_config`, `live_task` the descriptor of a file that `pack` made.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        settings: ClientSettings,
        folder: Path,
        import_paths: Sequence[str],
        run_config: Mapping[str, Scalar],
        on_report: Callable[[PhaseReport | MetricsReport], None],
        on_ended: Callable[[EndedReport], Awaitable[None]],
        live_task: int | None = None,
    ) -> None:
        self._live_task = live_task
        self._identity = identity
        self._settings = settings
        self._folder = folder
        self._import_paths = tuple(import_paths)
        self._run_config = dict(run_config)
        self._on_report = on_report
        self._on_ended = on_ended
        self._training: TrainingProcess | None = None
        self._started: StartTraining | None = None
        self._preparing: asyncio.Task[DeliveredApp | EndedReport] | None = None
        self._delivery: AppDelivery | None = None
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def start(self, started: StartTraining, group: asyncio.TaskGroup) -> None:
        """Start a training process as a task of `group`; the one before must have ended.

        A delivered app is made ready first, in the same task.
        """
        self._started = started
        self._is_idle.clear()
        name = f"{started.start.run_id}-{started.start.attempt}"
        if started.start.app is not None:
            self._preparing = group.create_task(self._prepare(started.start), name=f"app-{name}")
        else:
            self._training = self._make_process(started, None)
        group.create_task(self._train(), name=f"training-{name}")

    def steer(self, action: ServerMoved | StopTraining) -> None:
        """Pass a change of address or a stop on to the process; nothing happens when it has just ended."""
        if isinstance(action, ServerMoved):
            self._redirect(action)
        elif self._training is not None:
            self._training.stop(action.reason)
        elif self._preparing is not None:
            self._preparing.cancel(action.reason)

    def end(self, outcome: Outcome, reason: str | None) -> None:
        """End the current training as its program reports that it ended; nothing happens when there is none."""
        if self._training is not None:
            self._training.end(EndedReport(outcome=outcome, reason=reason))

    async def wait_idle(self) -> None:
        """Wait until nothing trains and the end of the last training was taken in."""
        await self._is_idle.wait()

    def _redirect(self, moved: ServerMoved) -> None:
        if self._started is not None:
            start = self._started.start.model_copy(update={"server_ip": moved.server_ip, "launch": moved.launch})
            self._started = replace(self._started, start=start)
        if self._delivery is not None:
            self._delivery.redirect(moved.server_ip)
        if self._training is not None:
            self._training.redirect(moved.server_ip, moved.launch)

    async def _train(self) -> None:
        ended: EndedReport | None = None
        if self._preparing is not None:
            preparing = self._preparing
            await asyncio.wait([preparing])
            self._preparing = None
            if preparing.cancelled():
                ended = EndedReport(outcome=Outcome.STOPPED, reason="stopped before its app was there")
            elif isinstance(app := preparing.result(), EndedReport):
                ended = app
            else:
                assert self._started is not None
                self._training = self._make_process(self._started, app)
        if ended is None:
            assert self._training is not None
            ended = await self._training.run()
        self._training = self._started = None
        await self._on_ended(ended)
        if self._started is None:  # what follows may have begun the next training
            self._is_idle.set()

    async def _prepare(self, start: RunStart) -> "DeliveredApp | EndedReport":
        # Here, not above: what checks bundles and signatures takes memory that a device without them keeps.
        from fedops_mqtt.apps import AppRefusedError
        from fedops_mqtt.device.app_delivery import AppDelivery

        if self._delivery is None:
            self._delivery = AppDelivery(
                settings=self._settings,
                client_mac=self._identity.client_mac,
                folder=self._folder,
                on_report=self._on_report,
            )
        try:
            return await self._delivery.prepare(start)
        except AppRefusedError as error:
            facts = {"run_id": start.run_id, "reason_code": error.code.value, "reason": error.problem}
            logger.error("the app is refused", extra=facts)
            return EndedReport(outcome=None, reason=error.problem, reason_code=error.code.value)

    def _make_process(self, started: StartTraining, app: "DeliveredApp | None") -> TrainingProcess:
        settings, start = self._settings, started.start
        job = Job(
            app=app.client_app if app else settings.app or "",
            live_task=self._live_task,
            import_paths=(str(app.folder),) if app else self._import_paths,
            identity=self._identity,
            start=start,
            is_local=started.is_local,
            state_folder=self._folder,
            ca_file=settings.line_ca_file,
            join_s=settings.join_limit_s,
            rejoin_s=settings.rejoin_limit_s,
            partition_id=settings.partition_id,
            num_partitions=settings.num_partitions,
            node_config=parse_pairs(settings.node_config),
            run_config={**self._run_config, **parse_pairs(settings.run_config), **(start.run_config or {})},
            wandb=self._wandb(start),
        )
        options = TrainingOptions(
            state_folder=self._folder,
            stop_grace_s=settings.stop_grace_s,
            run_limit_s=settings.run_limit_s,
            stderr_lines=settings.stderr_lines,
        )
        if app is not None:
            # -P: its modules come from its own folder, not from where the daemon was started; -B: that stays as it is.
            options = replace(options, command=(str(app.python or sys.executable), "-P", "-B", "-m", MODULE))
        return TrainingProcess(job=job, options=options, on_report=self._on_report)

    def _wandb(self, start: RunStart) -> WandbOptions | None:
        settings = self._settings
        if settings.wandb_project is None:
            return None
        return WandbOptions(
            key=settings.wandb_key.get_secret_value() if settings.wandb_key else None,
            project=settings.wandb_project,
            name=f"{self._identity.client_name}-v{start.gl_model}({utc_now():%Y-%m-%d %H:%M:%S})",
            config={  # the names that the FL server's own run on W&B has
                "run_id": start.run_id,
                "app_digest": start.app.digest if start.app else None,
                "app_version": start.app.version if start.app else None,
                "run_config": dict(start.run_config or {}),
            },
        )
