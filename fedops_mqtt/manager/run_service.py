"""What people ask of the manager: start a run, stop one, forget a client; and servers that announce themselves.

A task has one server and one server topic, so it has at most one active run.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Literal

from fedops_mqtt.apps import AppBundle
from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.core.run import RunDeadlines as CoreLimits
from fedops_mqtt.core.run_member import ServerExited, StopRequested
from fedops_mqtt.core.run_plan import waits_for
from fedops_mqtt.manager.app_store import PublishedApp
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.errors import (
    ClientPresentError,
    NotLaunchableError,
    RunConfigError,
    TaskBusyError,
    TooFewClientsError,
    UnknownClientError,
    UnknownRunError,
)
from fedops_mqtt.manager.journal import JournaledRun
from fedops_mqtt.manager.remote_order import store_of
from fedops_mqtt.manager.tasks import TaskConfig, TaskLimits
from fedops_mqtt.protocol import ServerCondition, ServerStatus, topics
from fedops_mqtt.runtime.key_values import Plain

logger = logging.getLogger(__name__)

BUNDLE_SERVER = "fedops_mqtt.server.bundle_server"
"""The FL server program of a published app."""
NUM_ROUNDS_KEY = "num-server-rounds"
"""What Flower's own project templates call the rounds in an app's configuration."""
MAX_ROUNDS = 1_000_000
SECRET_BYTES = 32
STORE_ELSEWHERE = (
    "its FL server runs on another machine, and the manager's store is a folder of this one: give the manager a store "
    "that both reach (--store s3://…), or name the folder there with FEDOPS_MQTT_STORE in the task's env"
)
_MAX_TASK_IN_RUN_ID = 38
"""Characters of the task in a run id, which has 64: the rest is time and chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """A run that somebody wants; what is None is as the tasks file says."""

    task_id: str
    num_rounds: int | None = None
    min_clients: int | None = None
    clients: tuple[str, ...] | None = None
    join: Literal["invited", "open"] | None = None
    run_config: Mapping[str, Plain] = field(default_factory=dict)


class RunService:
    """Takes orders; the manager's loop carries them out."""

    def __init__(self, desk: ManagerContext) -> None:
        self._desk = desk
        self._one_at_a_time = asyncio.Lock()

    async def start(self, order: RunOrder) -> Run:
        """Begin a run; it is in the journal when this returns.

        Raises:
            UnknownTaskError, NotLaunchableError, TaskBusyError, TooFewClientsError, RunConfigError, TasksFileError,
            BundleMissingError: why it cannot be.
        """
        self._desk.tasks.refresh()
        async with self._one_at_a_time, self._desk.apps.lock:
            config = self._desk.tasks[order.task_id]
            app = self._desk.apps.current.get(order.task_id)
            if app is not None:
                await self._desk.journal.reader.call(self._desk.apps.fetch, app.bundle.digest)
                config = with_app(config, app.bundle)
            if not config.is_launchable:
                raise NotLaunchableError(order.task_id)
            if not config.is_local and store_of(config, self._desk.settings.store) is None:
                raise NotLaunchableError(order.task_id, STORE_ELSEWHERE)
            spec = replace(self._spec(order, config), run_config=check_config(order.run_config, app))
            if app is not None:
                spec = replace(spec, app=app.reference)
            active = self._desk.open_runs.active(order.task_id)
            if active is not None:
                raise TaskBusyError(order.task_id, active.run_id)
            return await self._begin(spec, secrets.token_bytes(SECRET_BYTES), config)

    async def stop(self, run_id: str, reason: str) -> Run:
        """Ask for a run's end; one that has ended stays as it is.

        Raises:
            UnknownRunError: there is none of that name.
        """
        run = self._desk.open_runs.get(run_id)
        if run is not None:
            self._desk.inbox.put(run_id, StopRequested(reason))
            return run
        found = await self._desk.journal.reader.call(self._desk.journal.reader.find_run, run_id)
        if found is None:
            raise UnknownRunError(run_id)
        return found

    async def forget(self, client_mac: str, *, is_forced: bool = False) -> list[str]:
        """Clear what is retained of a client that is away, or of any if forced; return the tasks it was known in.

        Raises:
            UnknownClientError, ClientPresentError, BusError: why it is still known.
        """
        fleet = self._desk.watch.fleet
        views = [view for (_, mac), view in fleet.clients.items() if mac == client_mac]
        if not views:
            raise UnknownClientError(client_mac)
        for view in views:
            if not view.is_out and not is_forced:
                raise ClientPresentError(client_mac, view.status.task_id)
        for view in views:
            topic = topics.client_status(view.status.task_id, client_mac)
            await self._desk.connection.publish(topic, None)
            fleet.forget(topic)
            self._desk.watch.changed.add((view.status.task_id, client_mac))
        return [view.status.task_id for view in views]

    async def meet(self, unknown_servers: Iterable[ServerStatus]) -> None:
        """Adopt servers that announced a run of their own, where their task says so."""
        for word in unknown_servers:
            config = self._desk.tasks.get(word.task_id)
            is_serving = word.status in (ServerCondition.READY, ServerCondition.RUNNING)
            if config is None or not config.adopt or not is_serving or word.run_id is None:
                logger.debug("a server is not ours", extra={"task_id": word.task_id, "run_id": word.run_id})
                continue
            await self._adopt(word, word.run_id, config)

    async def _adopt(self, word: ServerStatus, run_id: str, config: TaskConfig) -> None:
        async with self._one_at_a_time:
            active = self._desk.open_runs.active(word.task_id)
            if active is not None:
                self._replace(active, word, run_id)
                return
            if await self._desk.journal.call(self._desk.journal.reader.find_run, run_id) is not None:
                return  # it was closed here, whatever its server believes
            order = RunOrder(task_id=word.task_id, num_rounds=word.num_rounds or None)
            spec = self._spec(order, config, run_id=run_id, is_adopted=True)
            await self._begin(spec, b"", config)
            self._desk.inbox.put(run_id, word)
            logger.info("adopted a server", extra={"task_id": word.task_id, "run_id": run_id})

    def _replace(self, active: Run, word: ServerStatus, run_id: str) -> None:
        """A server started anew by hand: its old run cannot go on, and the new one is met again after that."""
        if active.spec.is_adopted:
            self._desk.watch.unknown_servers[word.task_id] = word
            self._desk.inbox.put(
                active.run_id, ServerExited(active.launch, f"its server was started anew (run {run_id})")
            )
        else:
            logger.warning("an unknown FL server is in a task", extra={"run_id": active.run_id, "foreign": run_id})

    async def _begin(self, spec: RunSpec, secret: bytes, config: TaskConfig) -> Run:
        run = Run(spec=spec, created_at=self._desk.clock.now())
        run = replace(run, reason=waits_for(run, self._desk.watch.fleet))
        # What a relaunch needs days later: the tasks file and the manager's settings may say anything else by then.
        limits = TaskLimits.model_validate(self._desk.limits(config).model_dump())
        journaled = JournaledRun(run=run, secret=secret, task=config.model_copy(update={"limits": limits}))
        await self._desk.journal.call(self._desk.journal.add_run, journaled)
        self._desk.open_runs.add(journaled)
        self._desk.events.note_run(run)
        self._desk.inbox.wake()
        logger.info("run begins", extra={"run_id": run.run_id, "task_id": spec.task_id})
        return run

    def _spec(
        self, order: RunOrder, config: TaskConfig, *, run_id: str | None = None, is_adopted: bool = False
    ) -> RunSpec:
        clients = tuple(dict.fromkeys(order.clients)) if order.clients else None
        min_clients = order.min_clients or (
            min(config.min_clients, len(clients)) if clients is not None else config.min_clients
        )
        if clients is not None and len(clients) < min_clients:
            raise TooFewClientsError(min_clients, len(clients))
        limits = self._desk.limits(config)
        return RunSpec(
            run_id=run_id or _new_run_id(order.task_id),
            task_id=order.task_id,
            num_rounds=_rounds_in(order.run_config) or order.num_rounds or config.num_rounds or 0,
            min_clients=min_clients,
            clients=clients,
            join=order.join or config.join,
            is_adopted=is_adopted,
            limits=CoreLimits(**{each.name: getattr(limits, each.name) for each in fields(CoreLimits)}),
        )


def with_app(config: TaskConfig, bundle: AppBundle) -> TaskConfig:
    """Return a task as it is with this app: its ServerApp is run, and its rounds count where the task says none."""
    update: dict[str, object] = {}
    if bundle.server_app is not None:
        update = {"command": None, "module": BUNDLE_SERVER, "args": ()}
    if config.num_rounds is None and (num_rounds := _rounds_in(bundle.config)):
        update["num_rounds"] = num_rounds
    return config.model_copy(update=update)


def _rounds_in(config: Mapping[str, Plain]) -> int | None:
    """Return the rounds that an app's configuration says.

    Raises:
        RunConfigError: they are no number of rounds.
    """
    value = config.get(NUM_ROUNDS_KEY)
    if value is not None and (type(value) is not int or not 1 <= value <= MAX_ROUNDS):
        raise RunConfigError(f"{NUM_ROUNDS_KEY} is {value!r}, not a whole number from 1 to {MAX_ROUNDS:,}")
    return value


def check_config(run_config: Mapping[str, Plain], app: PublishedApp | None) -> Mapping[str, Plain]:
    """Return a run's configuration; what a published app's project does not name is refused, as `flwr run` does.

    Raises:
        RunConfigError: it names a key that the app does not have.
    """
    if app is None:
        return run_config
    known = {*app.bundle.config, NUM_ROUNDS_KEY}
    if unknown := sorted(run_config.keys() - known):
        names = ", ".join(sorted(app.bundle.config)) or "none"
        where = f"not in [tool.flwr.app.config] of {app.bundle.title} (its keys: {names[:1000]})"
        raise RunConfigError(f"{', '.join(unknown)[:200]}: {where}")
    return run_config


def _new_run_id(task_id: str) -> str:
    """Runs sort by time where names are sorted."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{task_id[:_MAX_TASK_IN_RUN_ID]}-{now}-{secrets.token_hex(2)}"
