"""The daemon of a device: publishes its client's status, takes starts and stops, runs one training process at a time.

Every event goes through `apply`: facts are on disk before anything is done, and done before it is published. Neither
flwr nor torch, wandb or numpy is ever imported here: an idle daemon stays small.
"""

import asyncio
import logging
import platform
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol, assert_never

from fedops_mqtt import __version__
from fedops_mqtt.bus import (
    BusOptions,
    Connection,
    Publication,
    PublishQueue,
    Received,
    StatusOwner,
)
from fedops_mqtt.core import client as core
from fedops_mqtt.core.client import Client, Step, last_will, snapshot
from fedops_mqtt.core.client_state import (
    ClientState,
    Event,
    LocalStart,
    PhaseReport,
    ServerMoved,
    ShutDown,
    ShutdownRequested,
    StartDecision,
    StopTraining,
    TrainingEnded,
)
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.device.app_policy import AppPolicy
from fedops_mqtt.device.identity import client_id_for, identity_of
from fedops_mqtt.device.journal import ClientJournal, identity_lock
from fedops_mqtt.device.system_load import measure_load
from fedops_mqtt.device.trainer import MakeTrainer, Scalar, Trainer, Training
from fedops_mqtt.device.training_process import mark_of
from fedops_mqtt.protocol import (
    Answer,
    Channel,
    ClientMetrics,
    ClientStatus,
    Outcome,
    Phase,
    RunStart,
    StartTrigger,
    StopTrigger,
    clip,
    filter_for,
    first_line,
    name_error,
    topics,
    utc_now,
)
from fedops_mqtt.runtime.background import first_error
from fedops_mqtt.runtime.processes import kill_marked
from fedops_mqtt.runtime.settings import ClientSettings
from fedops_mqtt.runtime.systemd import supervised
from fedops_mqtt.training.pipe import EndedReport, MetricsReport

Notice = Literal["trainFin", "trainFail", "flclient_out"]
"""FedOps' names for how a training ended, and for a client that leaves (FedOps client_api.ClientMangerAPI)."""


class Attachment(Protocol):
    """What other programs reach a daemon by; FedOps' side is `client.app`."""

    def serving(self, daemon: "Daemon") -> AbstractAsyncContextManager[str | None]:
        """Serve while the block runs; yields the `host:port` that it listens at, if it does."""

    async def notify(self, notice: Notice) -> None:
        """Report that a training ended or that the client leaves."""


logger = logging.getLogger(__name__)

_PHASE_INTERVAL_S = 0.5
"""Phases go into the status at most this often: a trivial round has a dozen of them in 20 ms."""


class Daemon:
    """One client. `run` it once; `start` and `leave` may be called while it runs, in its loop.

    `make_trainer` makes what trains, from `Trainer`'s arguments; where another machine trains, `agent` is what the
    status has as `agent`, in the place of this process' own. `attachment` lives as long as the daemon is on the bus.

    Raises:
        ClientConfigError: a setting that a client needs is missing.
        NoMacAddressError: no MAC is set and this machine has none.
        BrokerUrlError: the broker's URL is invalid.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        import_paths: Sequence[str] = (),
        run_config: Mapping[str, Scalar] | None = None,
        make_trainer: MakeTrainer = Trainer,
        make_journal: Callable[[Path], ClientJournal] = ClientJournal,
        agent: Mapping[str, str] | None = None,
        attachment: Attachment | None = None,
    ) -> None:
        self.settings = settings
        self._agent = _AGENT if agent is None else agent
        self._make_journal = make_journal
        self.identity, self._folder, epochs = identity_of(settings)
        self._client = Client(identity=self.identity)
        self._policy = AppPolicy(settings, self.identity, self._folder)
        self._client_id = client_id_for(settings, self.identity)
        self._step_lock = asyncio.Lock()
        self._shutdown_requested = asyncio.Event()
        self._leave_reason: str | None = None
        self._phase: PhaseReport | None = None
        self._joined_run_id: str | None = None
        self._phase_news = asyncio.Event()
        self._training_news = asyncio.Event()
        self._metrics = PublishQueue()
        self._group: asyncio.TaskGroup | None = None
        self._training: Training | None = None
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._attachment = attachment
        self.http_address: str | None = None
        """Where the HTTP shim listens, once it does."""
        self._trainer = make_trainer(
            identity=self.identity,
            settings=settings,
            folder=self._folder,
            import_paths=import_paths,
            run_config=run_config or {},
            on_report=self._take_report,
        )
        self._owner = StatusOwner(
            topic=topics.client_status(self.identity.task_id, self.identity.client_mac),
            instance=self.identity.instance,
            make_snapshot=self._snapshot,
            make_will=self._will,
            make_goodbye=self._goodbye,
            epochs=epochs,
            heartbeat_s=settings.heartbeat_s,
        )

    @property
    def client(self) -> Client:
        """The client as it is now."""
        return self._client

    async def run(self) -> None:
        """Be on the bus until asked to leave; being cancelled leaves in a hurry, with a goodbye too.

        Raises:
            DaemonRunningError: this identity has a daemon on this machine already.
            ConflictingInstanceError: a newer daemon has this identity, on another machine perhaps.
            ShimAddressError: the HTTP shim cannot listen.
            OSError: the state folder cannot be written.
        """
        with identity_lock(self._folder, task_id=self.identity.task_id, client_mac=self.identity.client_mac):
            self._journal = self._make_journal(self._folder)
            await self._recover()
            async with self._on_bus() as bus, self._attached(), supervised():
                await self._live(bus)

    def leave(self, reason: str | None = None) -> None:
        """End the daemon: what trains is interrupted, then client-out is published, with `reason` or how it ended."""
        self._leave_reason = reason or self._leave_reason
        self._shutdown_requested.set()

    async def start(self, start: StartTrigger | LocalStart) -> StartDecision:
        """Take a start, from the bus or from HTTP: the one place where a training begins."""
        decision = (await self.apply(start)).decision
        assert decision is not None
        facts = {"answer": decision.answer.value, "reason": decision.reason, "server_ip": start.server_ip}
        logger.info("answered a start", extra=facts)
        return decision

    async def apply(self, event: Event) -> Step:
        """Apply an event: write its facts, carry out what follows, publish the new status."""
        async with self._step_lock:
            before = self._client
            refusal = self._policy.refusal(event) if isinstance(event, StartTrigger | LocalStart) else None
            step = core.apply(before, event, app_refusal=refusal)
            problem = await self._keep(step.client.facts)
            if isinstance(step.action, RunStart):
                problem = problem or self._begin(step.action)
                if problem is not None:
                    step = _refused(before, event, problem)
                    await self._keep(step.client.facts)
            self._client = step.client
            match step.action:
                case None | RunStart():
                    pass
                case ServerMoved(server_ip=server_ip, launch=launch):
                    if self._training is not None:
                        self._training.redirect(server_ip, launch)
                case StopTraining(reason=reason, reason_code=code):
                    if self._training is not None:
                        self._training.stop(reason, code)
                case _:
                    assert_never(step.action)
        if step.client != before or isinstance(event, StartTrigger):
            self._note_change(before, step.client)
            self._owner.update()
        return step

    def _begin(self, start: RunStart) -> str | None:
        """Begin a training; returns why it cannot be made."""
        assert self._group is not None
        try:
            training = self._trainer.make(self._with_token(start))
        except Exception as error:  # the device stays on the bus, whatever it is
            logger.exception("a training cannot be made", extra={"run_id": start.run_id})
            return f"the training cannot be made: {name_error(first_error(error))}"
        self._phase = self._joined_run_id = None
        self._training = training
        self._is_idle.clear()
        self._group.create_task(self._train(training), name=f"training-{start.run_id}-{start.attempt}")
        return None

    async def _keep(self, facts: ClientState) -> str | None:
        """Write facts; returns what went wrong."""
        if facts == self._journal.written:
            return None
        try:
            await asyncio.to_thread(self._journal.save, facts)
        except OSError as error:
            logger.error("journal cannot be written", extra={"folder": str(self._folder), "why": str(error)})
            return f"journal cannot be written: {error}"
        return None

    def _with_token(self, start: RunStart) -> RunStart:
        """Return a start that names no token with the one that this device shares with servers started by hand."""
        shared = self.settings.join_token
        if start.token or shared is None:
            return start
        return start.model_copy(update={"token": shared.get_secret_value()})

    def _note_change(self, before: Client, after: Client) -> None:
        if before.condition is not after.condition:
            facts = {"status": after.condition.value, "reason": after.reason and first_line(after.reason)}
            logger.info("status changed", extra=facts | ({"run_id": after.run.run_id} if after.run else {}))

    async def _recover(self) -> None:
        """Take up what the last daemon left: its facts, and processes that outlived it."""
        facts = await asyncio.to_thread(self._journal.load)
        num_left = await asyncio.to_thread(kill_marked, mark_of(self._folder))
        if num_left:
            logger.warning("ended processes that an earlier daemon left", extra={"count": num_left})
        self._client = core.restore(self.identity, facts)
        await self._keep(self._client.facts)

    @asynccontextmanager
    async def _on_bus(self) -> AsyncIterator[Connection]:
        mine = (self.identity.task_id, self.identity.client_mac)
        async with self._owner.on_bus(
            self.settings.broker,
            client_id=self._client_id,
            subscriptions=[filter_for(channel, *mine) for channel in (Channel.CLIENT_START, Channel.CLIENT_STOP)],
            options=BusOptions.from_settings(self.settings),
            observers=[self._metrics.take],
            may_move=lambda: self._client.run is None,
        ) as bus:
            yield bus

    @asynccontextmanager
    async def _attached(self) -> AsyncIterator[None]:
        if self._attachment is None:
            yield
            return
        async with self._attachment.serving(self) as self.http_address:
            yield

    async def _notify(self, notice: Notice) -> None:
        if self._attachment is not None:
            await self._attachment.notify(notice)

    async def _live(self, bus: Connection) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            tasks = [
                group.create_task(self._listen(bus), name="bus-events"),
                group.create_task(self._publish_phases(), name="phases"),
                group.create_task(self._metrics.run(bus), name="metrics"),
            ]
            if self.settings.system_interval_s:
                tasks.append(group.create_task(self._measure_load(), name="system-load"))
            if self.settings.keep_ready:
                tasks.append(group.create_task(self._trainer.keep_ready(self._is_idle), name="ready-process"))
            await self._shutdown_requested.wait()
            await self.apply(ShutdownRequested())
            await self._is_idle.wait()
            for task in tasks:
                task.cancel()
        await self._metrics.flush(bus)
        await self._notify("flclient_out")

    async def _listen(self, bus: Connection) -> None:
        async for event in bus.events():
            match event:
                case Received(is_retained=True, message=StartTrigger() | StopTrigger(), topic=topic):
                    logger.warning("a retained trigger is ignored: it may be of any age", extra={"topic": str(topic)})
                case Received(message=StartTrigger() as trigger):
                    await self.start(trigger)
                case Received(message=StopTrigger() as stop):
                    await self.apply(stop)
                case _:
                    pass  # this client's own status is the StatusOwner's business

    def _take_report(self, report: PhaseReport | MetricsReport) -> None:
        run = self._client.run
        if isinstance(report, PhaseReport):
            if report.phase is Phase.TRAINING and self._client.phase is not Phase.TRAINING:
                self._training_news.set()
            self._phase = report
            self._joined_run_id = report.run_id or self._joined_run_id
            self._phase_news.set()
        elif run is not None:
            self.publish_metrics(report)

    def publish_metrics(self, report: MetricsReport) -> None:
        """Publish metrics, as of the current run if there is one."""
        run, me, mine = self._client.run, self.identity, self._client.facts.active_training
        run_id = run.run_id if run else None
        if mine is not None and mine.is_local:  # phases are applied calmly: metrics overtake the one that names the run
            run_id = self._joined_run_id or run_id
        metrics = ClientMetrics(
            kind=report.kind,
            task_id=me.task_id,
            client_mac=me.client_mac,
            instance=me.instance,
            run_id=run_id,
            attempt=run.attempt if run else 0,
            round=report.round,
            values=report.values,
            at=utc_now(),
        )
        self._metrics.put(Publication(topic=topics.client_metrics(me.task_id, me.client_mac), message=metrics))

    async def _measure_load(self) -> None:
        await measure_load(
            run=lambda: self._client.run, publish=self.publish_metrics, interval_s=self.settings.system_interval_s
        )

    async def _publish_phases(self) -> None:
        """Bring phases into the status, calmly; the first training of a round does not wait."""
        while True:
            await self._phase_news.wait()
            self._phase_news.clear()
            self._training_news.clear()
            await self._take_phase()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PHASE_INTERVAL_S):
                    await self._training_news.wait()

    async def _take_phase(self) -> None:
        report, self._phase = self._phase, None
        if report is not None:
            await self.apply(report)

    async def _train(self, training: Training) -> None:
        try:
            ended = await training.run()
        except Exception as error:  # the device stays on the bus, whatever it is
            logger.exception("a training broke off")
            ended = EndedReport(
                outcome=Outcome.FAILED, reason=f"the training broke off: {name_error(first_error(error))}"
            )
        self._training = None
        await self._take_phase()
        is_good = ended.outcome is Outcome.FINISHED
        reason, code = (None, None) if is_good else (ended.reason, ended.reason_code)
        await self.apply(TrainingEnded(outcome=ended.outcome, reason=reason, reason_code=code))
        await self._notify("trainFin" if is_good else "trainFail")
        if self._training is None:  # the next one may have begun
            self._is_idle.set()

    def _snapshot(self, stamp: Stamp) -> ClientStatus:
        return snapshot(self._client, stamp, at=utc_now(), heartbeat_s=self.settings.heartbeat_s, agent=self._agent)

    def _will(self, stamp: Stamp) -> ClientStatus:
        return last_will(self.identity, stamp, at=utc_now(), heartbeat_s=self.settings.heartbeat_s)

    def _goodbye(self, stamp: Stamp, reason: str) -> ClientStatus:
        self._client = core.apply(self._client, ShutDown(reason=self._leave_reason or reason)).client
        try:
            self._journal.save(self._client.facts)
        except OSError as error:
            logger.error("journal cannot be written", extra={"folder": str(self._folder), "why": str(error)})
        return self._snapshot(stamp)


_AGENT = {
    "fedops-mqtt": __version__,
    "python": platform.python_version(),
    "system": f"{platform.system()} {platform.machine()}",
}


def _refused(client: Client, event: Event, problem: str) -> Step:
    """Return the step of a start that cannot be kept or made, and so must not be taken."""
    decision = StartDecision(answer=Answer.REJECTED, reason=clip(problem))
    if not isinstance(event, StartTrigger):
        return Step(client=client, decision=decision)
    return core.answer(client, event, decision)
