"""The one training that a daemon has at a time: made from a start and the settings, steered, and told how it ended."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fedops_mqtt.core.client import Identity
from fedops_mqtt.core.client_events import ServerMoved, StartTraining, StopTraining
from fedops_mqtt.device.training_process import TrainingOptions, TrainingProcess
from fedops_mqtt.protocol import Outcome, utc_now
from fedops_mqtt.runtime.key_values import parse_pairs
from fedops_mqtt.runtime.settings import ClientSettings
from fedops_mqtt.training.pipe import EndedReport, Job, MetricsReport, PhaseReport, WandbOptions

Scalar = bool | int | float | str | None


class AnyTrainer(Protocol):
    """What a daemon needs of whatever trains: `Trainer`, or the bridge's, which has a FedOps client do it."""

    def start(self, start: StartTraining, group: asyncio.TaskGroup) -> None:
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
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def start(self, start: StartTraining, group: asyncio.TaskGroup) -> None:
        """Start a training process as a task of `group`; the one before must have ended."""
        options = TrainingOptions(
            state_folder=self._folder,
            stop_grace_s=self._settings.stop_grace_s,
            run_limit_s=self._settings.run_limit_s,
            stderr_lines=self._settings.stderr_lines,
        )
        self._training = TrainingProcess(job=self._job(start), options=options, on_report=self._on_report)
        self._is_idle.clear()
        group.create_task(self._see_through(self._training), name=f"training-{start.run_id}-{start.attempt}")

    def steer(self, action: ServerMoved | StopTraining) -> None:
        """Pass a change of address or a stop on to the process; nothing happens when it has just ended."""
        if self._training is None:
            return
        if isinstance(action, ServerMoved):
            self._training.redirect(action.server_ip, action.launch)
        else:
            self._training.stop(action.reason)

    def end(self, outcome: Outcome, reason: str | None) -> None:
        """End the training in hand as its program says that it ended; nothing happens when there is none."""
        if self._training is not None:
            self._training.end(EndedReport(outcome=outcome, reason=reason))

    async def wait_idle(self) -> None:
        """Wait until nothing trains and the end of the last training was taken in."""
        await self._is_idle.wait()

    async def _see_through(self, training: TrainingProcess) -> None:
        ended = await training.run()
        self._training = None
        await self._on_ended(ended)
        if self._training is None:
            self._is_idle.set()

    def _job(self, start: StartTraining) -> Job:
        settings, identity = self._settings, self._identity
        join_token = settings.join_token.get_secret_value() if settings.join_token else None
        return Job(
            app=settings.app or "",
            live_task=self._live_task,
            import_paths=self._import_paths,
            task_id=identity.task_id,
            client_mac=identity.client_mac,
            client_name=identity.client_name,
            instance=identity.instance,
            run_id=start.run_id,
            attempt=start.attempt,
            launch=start.launch,
            server_ip=start.server_ip,
            transport=start.transport,
            token=start.token or join_token,
            gl_model=start.gl_model,
            num_clients=start.num_clients,
            is_local=start.is_local,
            state_folder=self._folder,
            ca_file=settings.line_ca_file,
            join_limit_s=settings.join_limit_s,
            rejoin_limit_s=settings.rejoin_limit_s,
            partition_id=settings.partition_id,
            num_partitions=settings.num_partitions,
            node_config=parse_pairs(settings.node_config),
            run_config={**self._run_config, **parse_pairs(settings.run_config)},
            wandb=self._wandb(start),
        )

    def _wandb(self, start: StartTraining) -> WandbOptions | None:
        settings = self._settings
        if settings.wandb_project is None:
            return None
        return WandbOptions(
            key=settings.wandb_key.get_secret_value() if settings.wandb_key else None,
            project=settings.wandb_project,
            name=f"{self._identity.client_name}-v{start.gl_model}({utc_now():%Y-%m-%d %H:%M:%S})",
        )
