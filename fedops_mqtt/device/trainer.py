"""Trainings of a daemon: what they have in common, and how those of this device are made from a start and settings."""

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedops_mqtt.core.client import Identity
from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.device.training_process import MODULE, SpawnedProcess, TrainingOptions, TrainingProcess
from fedops_mqtt.protocol import Outcome, ReasonCode, RunStart, utc_now
from fedops_mqtt.runtime.background import bare_error
from fedops_mqtt.runtime.key_values import parse_pairs
from fedops_mqtt.runtime.settings import IS_DELIVERED, ClientSettings
from fedops_mqtt.training.pipe import EndedReport, Job, MetricsReport, WandbOptions

if TYPE_CHECKING:
    from fedops_mqtt.device.app_delivery import AppDelivery, DeliveredApp

logger = logging.getLogger(__name__)

Scalar = bool | int | float | str | None


class Training(Protocol):
    """One training that a daemon runs: a process of this device, or what the bridge has a FedOps client do."""

    async def run(self) -> EndedReport:
        """Train to whatever end; when this returns, no process of it is left."""
        ...

    def redirect(self, server_ip: str, launch: int) -> None:
        """The FL server is somewhere else now."""
        ...

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """End it soon; nothing happens when it has just ended."""
        ...


class AnyTrainer(Protocol):
    """Makes trainings: `Trainer`, or the bridge's, which has a FedOps client do them."""

    def make(self, start: RunStart) -> Training:
        """Return the training of a start; the one before must have ended."""
        ...

    async def keep_ready(self, is_idle: asyncio.Event) -> None:
        """Keep a process ready for the next training, until this is cancelled; `is_idle` is set while none runs."""
        ...


class MakeTrainer(Protocol):
    """Makes a trainer; called once, by the daemon."""

    def __call__(
        self,
        *,
        identity: Identity,
        settings: ClientSettings,
        folder: Path,
        import_paths: Sequence[str],
        run_config: Mapping[str, Scalar],
        on_report: Callable[[PhaseReport | MetricsReport], None],
    ) -> AnyTrainer:
        """Return a trainer for this client."""
        ...


class Trainer:
    """Makes the trainings of this device from starts and settings.

    `run_config` is what apps find in `Context.run_config`, `live_task` the descriptor of a file that `pack` made,
    `register` the MODULE:ATTRIBUTE of what makes clients of registered models.
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
        live_task: int | None = None,
        register: str | None = None,
    ) -> None:
        self._live_task = live_task
        self._register = register
        self._identity = identity
        self._settings = settings
        self._folder = folder
        self._import_paths = tuple(import_paths)
        self._run_config = dict(run_config)
        self._on_report = on_report
        self._delivery: AppDelivery | None = None
        self._last: TrainingProcess | DeliveredTraining | None = None
        self._ready: SpawnedProcess | None = None
        self._has_taken_ready = asyncio.Event()

    def make(self, start: RunStart) -> Training:
        """Return the training of a start; a delivered app is made ready in it first."""
        if start.app is None:
            self._last = self._make_process(start, None)
        else:
            self._last = DeliveredTraining(start, delivery=self._app_delivery, make_process=self._make_process)
        return self._last

    def end(self, outcome: Outcome, reason: str | None) -> None:
        """End the current training as its program reports that it ended; nothing happens when there is none."""
        if self._last is not None:
            self._last.end(EndedReport(outcome=outcome, reason=reason))

    async def keep_ready(self, is_idle: asyncio.Event) -> None:
        """Keep a process ready for the next training, until this is cancelled; `is_idle` is set while none runs."""
        try:
            while True:
                await is_idle.wait()
                ready = SpawnedProcess(self._options(None), self._live_task)
                await ready.begin("--ready")
                self._has_taken_ready.clear()
                self._ready = ready
                try:
                    await self._has_taken_ready.wait()
                finally:
                    self._ready = None
                    if not ready.is_taken:
                        await ready.close()
        except OSError as error:  # trainings start without one
            logger.warning("no process can be kept ready for the next training", extra={"why": str(error)})

    def _take_ready(self, options: TrainingOptions) -> SpawnedProcess | None:
        """Return the process that is ready, where it can do with these options."""
        ready, self._ready = self._ready, None
        self._has_taken_ready.set()
        if ready is None or not ready.is_alive or ready.options != options:
            return None
        ready.is_taken = True
        return ready

    def _app_delivery(self) -> "AppDelivery":
        if self._delivery is None:
            # Here, not above: what checks bundles and signatures takes memory that a device without them keeps.
            from fedops_mqtt.device.app_delivery import AppDelivery

            self._delivery = AppDelivery(
                settings=self._settings,
                client_mac=self._identity.client_mac,
                folder=self._folder,
                on_report=self._on_report,
            )
        return self._delivery

    def _make_process(self, start: RunStart, app: "DeliveredApp | None") -> TrainingProcess:
        settings = self._settings
        job = Job(
            app=app.client_app if app else settings.app or "",
            live_task=self._live_task,
            import_paths=(str(app.folder),) if app else self._import_paths,
            identity=self._identity,
            start=start,
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
        options = self._options(app.python if app is not None else None)
        ready = self._take_ready(options)
        return TrainingProcess(job=job, options=options, on_report=self._on_report, ready=ready)

    def _options(self, python: Path | None) -> TrainingOptions:
        settings = self._settings
        options = TrainingOptions(
            state_folder=self._folder,
            stop_grace_s=settings.stop_grace_s,
            run_limit_s=settings.run_limit_s,
            stderr_lines=settings.stderr_lines,
            register=self._register,
        )
        if settings.app not in IS_DELIVERED:
            return options
        # -P: its modules come from its own folder, not from where the daemon was started; -B: that stays as it is.
        return replace(options, command=(str(python or sys.executable), "-P", "-B", "-m", MODULE))

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


class DeliveredTraining:
    """A training whose app is fetched and made ready first."""

    def __init__(
        self,
        start: RunStart,
        *,
        delivery: "Callable[[], AppDelivery]",
        make_process: "Callable[[RunStart, DeliveredApp], TrainingProcess]",
    ) -> None:
        self._start = start
        self._make_delivery = delivery
        self._make_process = make_process
        self._delivery: AppDelivery | None = None
        self._preparing: asyncio.Task[DeliveredApp] | None = None
        self._process: TrainingProcess | None = None
        self._is_stopped = False

    async def run(self) -> EndedReport:
        """Get the app ready, then train."""
        from fedops_mqtt.apps import AppRefusedError

        start, delivery = self._start, self._make_delivery()
        self._delivery = delivery
        try:
            with bare_error():
                async with asyncio.TaskGroup() as group:
                    name = f"app-{start.run_id}-{start.attempt}"
                    preparing = self._preparing = group.create_task(delivery.prepare(start), name=name)
                    if self._is_stopped:
                        preparing.cancel()
        except AppRefusedError as error:
            facts = {"run_id": start.run_id, "reason_code": error.code.value, "reason": error.problem}
            logger.error("the app is refused", extra=facts)
            return EndedReport(outcome=None, reason=error.problem, reason_code=error.code)
        if preparing.cancelled() or self._is_stopped:
            return EndedReport(outcome=Outcome.STOPPED, reason="stopped before its app was there")
        self._process = self._make_process(self._start, preparing.result())
        return await self._process.run()

    def redirect(self, server_ip: str, launch: int) -> None:
        """The FL server is somewhere else now: the app is fetched there, or trains on there."""
        self._start = self._start.model_copy(update={"server_ip": server_ip, "launch": launch})
        if self._delivery is not None:
            self._delivery.redirect(server_ip)
        if self._process is not None:
            self._process.redirect(server_ip, launch)

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """End it: what is fetched stays for the next time."""
        self._is_stopped = True
        if self._process is not None:
            self._process.stop(reason, code)
        elif self._preparing is not None:
            self._preparing.cancel(reason)

    def end(self, ended: EndedReport) -> None:
        """End the process with a result that was reported elsewhere."""
        if self._process is not None:
            self._process.end(ended)
