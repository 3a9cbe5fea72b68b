"""Starts and stops runs, forgets clients, and adopts servers that announce a run of their own.

A task has one server and one server topic, so it has at most one active run.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace

from fedops_mqtt.apps import AppBundle
from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.core.run_member import ServerExited, StopRequested
from fedops_mqtt.core.run_plan import waits_for
from fedops_mqtt.manager.api.models import RunRequest
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
from fedops_mqtt.manager.tasks import TaskConfig
from fedops_mqtt.protocol import ServerCondition, ServerStatus, new_run_id, topics
from fedops_mqtt.runtime.key_values import NUM_ROUNDS_KEY, Plain
from fedops_mqtt.runtime.settings_file import SettingsFileError

logger = logging.getLogger(__name__)

MAX_ROUNDS = 1_000_000
SECRET_BYTES = 32
STORE_ELSEWHERE = (
    "its FL server runs on another machine, and the manager's store is a folder of this one: give the manager a store "
    "that both reach (--store s3://…), or name the folder there with FEDOPS_MQTT_STORE in the task's env"
)


class RunService:
    """Accepts requests; the manager's loop carries them out. `bundle_server` is as in `run_manager`."""

    def __init__(self, context: ManagerContext, *, bundle_server: str) -> None:
        self._context = context
        self._bundle_server = bundle_server
        self._one_at_a_time = asyncio.Lock()

    async def start(self, request: RunRequest) -> Run:
        """Begin a run; it is in the journal when this returns.

        Raises:
            UnknownTaskError, NotLaunchableError, TaskBusyError, TooFewClientsError, RunConfigError, TasksFileError,
            BundleMissingError: the run cannot begin.
        """
        self._context.tasks.refresh()
        async with self._context.apps.lock:
            config, app = await self._ready(request.task_id)
            # Taken last, after what may wait behind long reads: the manager's loop needs it, too.
            async with self._one_at_a_time:
                spec = self._spec(request, config)
                spec = replace(
                    spec,
                    run_config=check_config(request.run_config, app),
                    app=app.reference if app is not None else None,
                )
                active = self._context.open_runs.active(request.task_id)
                if active is not None:
                    raise TaskBusyError(request.task_id, active.run_id)
                return await self._begin(spec, secrets.token_bytes(SECRET_BYTES), config)

    async def stop(self, run_id: str, reason: str) -> Run:
        """Request a run's end; one that has ended stays as it is.

        Raises:
            UnknownRunError: there is no run of that id.
        """
        run = self._context.open_runs.get(run_id)
        if run is not None:
            self._context.event_queue.put(run_id, StopRequested(reason))
            return run
        found = await self._context.journal.reader.call(self._context.journal.reader.find_run, run_id)
        if found is None:
            raise UnknownRunError(run_id)
        return found

    async def forget(self, client_mac: str, *, is_forced: bool = False) -> list[str]:
        """Clear the retained statuses of an offline client, or of any if forced; return the tasks it was known in.

        Raises:
            UnknownClientError, ClientPresentError, BusError: it was not forgotten.
        """
        fleet = self._context.bus_reader.fleet
        views = [view for (_, mac), view in fleet.clients.items() if mac == client_mac]
        if not views:
            raise UnknownClientError(client_mac)
        for view in views:
            if not view.is_out and not is_forced:
                raise ClientPresentError(client_mac, view.status.task_id)
        for view in views:
            topic = topics.client_status(view.status.task_id, client_mac)
            await self._context.connection.publish(topic, None)
            fleet.forget(topic)
            self._context.bus_reader.changed.add((view.status.task_id, client_mac))
        return [view.status.task_id for view in views]

    async def adopt_servers(self, unknown_servers: Iterable[ServerStatus]) -> None:
        """Adopt servers that announced a run of their own, where their task allows it."""
        for server in unknown_servers:
            config = self._context.tasks.get(server.task_id)
            is_serving = server.status in (ServerCondition.READY, ServerCondition.RUNNING)
            if config is None or not config.adopt or not is_serving or server.run_id is None:
                logger.debug("unknown FL server ignored", extra={"task_id": server.task_id, "run_id": server.run_id})
                continue
            await self._adopt(server, server.run_id, config)

    async def _adopt(self, server: ServerStatus, run_id: str, config: TaskConfig) -> None:
        async with self._one_at_a_time:
            active = self._context.open_runs.active(server.task_id)
            if active is not None:
                self._replace(active, server, run_id)
                return
            if await self._context.journal.call(self._context.journal.reader.has_run, run_id):
                return  # it was closed here, whatever its server's status
            spec = self._spec(RunRequest(task_id=server.task_id), config)
            num_rounds = server.num_rounds or spec.num_rounds
            spec = replace(spec, run_id=run_id, num_rounds=num_rounds, is_adopted=True)
            await self._begin(spec, b"", config)
            self._context.event_queue.put(run_id, server)
            logger.info("adopted a server", extra={"task_id": server.task_id, "run_id": run_id})

    async def _ready(self, task_id: str) -> tuple[TaskConfig, PublishedApp | None]:
        """Return a task that can be launched, and its app, whose bundle is a file of this host now."""
        config, app = self._context.tasks[task_id], self._context.apps.current.get(task_id)
        try:
            if app is not None:
                await self._context.journal.reader.call(self._context.apps.fetch, app.bundle.digest)
                config = with_app(config, app.bundle, self._bundle_server)
            if not config.is_launchable:
                raise NotLaunchableError(task_id)
            if not config.is_local and store_of(config, self._context.settings.store) is None:
                raise NotLaunchableError(task_id, STORE_ELSEWHERE)
        except (SettingsFileError, OSError) as error:
            raise NotLaunchableError(task_id, str(error)) from error
        return config, app

    def _replace(self, active: Run, server: ServerStatus, run_id: str) -> None:
        """End the run of an adopted server that was started anew by hand; the new one is adopted after that."""
        if active.spec.is_adopted:
            self._context.bus_reader.unknown_servers[server.task_id] = server
            if active.exited_at is None:
                reason = f"its server was started anew (run {run_id})"
                self._context.event_queue.put(active.run_id, ServerExited(active.launch, reason))
        else:
            logger.warning("an unknown FL server is in a task", extra={"run_id": active.run_id, "foreign": run_id})

    async def _begin(self, spec: RunSpec, secret: bytes, config: TaskConfig) -> Run:
        run = Run(spec=spec, created_at=self._context.clock.now())
        run = replace(run, reason=waits_for(run, self._context.bus_reader.fleet))
        # With the task, for a relaunch days later: the tasks file may have changed by then.
        journaled = JournaledRun(run=run, secret=secret, task=config)
        await self._context.journal.call(self._context.journal.add_run, journaled)
        self._context.open_runs.add(journaled)
        self._context.events.note_run(run)
        self._context.event_queue.wake()
        logger.info("run begins", extra={"run_id": run.run_id, "task_id": spec.task_id})
        return run

    def _spec(self, request: RunRequest, config: TaskConfig) -> RunSpec:
        clients = tuple(dict.fromkeys(request.clients)) if request.clients else None
        min_clients = request.min_clients or (
            min(config.min_clients, len(clients)) if clients is not None else config.min_clients
        )
        if clients is not None and len(clients) < min_clients:
            raise TooFewClientsError(min_clients, len(clients))
        return RunSpec(
            run_id=new_run_id(request.task_id),
            task_id=request.task_id,
            num_rounds=_rounds_in(request.run_config) or request.num_rounds or config.num_rounds or 0,
            min_clients=min_clients,
            clients=clients,
            join=request.join or config.join,
            limits=self._context.limits(config),
        )


def with_app(config: TaskConfig, bundle: AppBundle, bundle_server: str) -> TaskConfig:
    """Return a task with this app: the module `bundle_server` runs its ServerApp, where it has one.

    Its number of rounds counts where the task has none.
    """
    update: dict[str, object] = {}
    if bundle.server_app is not None:
        update = {"command": None, "module": bundle_server, "args": ()}
    if config.num_rounds is None and (num_rounds := _rounds_in(bundle.config)):
        update["num_rounds"] = num_rounds
    return config.model_copy(update=update)


def _rounds_in(config: Mapping[str, Plain]) -> int | None:
    """Return the number of rounds in an app's configuration.

    Raises:
        RunConfigError: the value is invalid.
    """
    value = config.get(NUM_ROUNDS_KEY)
    if value is not None and (type(value) is not int or not 1 <= value <= MAX_ROUNDS):
        raise RunConfigError(f"{NUM_ROUNDS_KEY} is {value!r}, not a whole number from 1 to {MAX_ROUNDS:,}")
    return value


def check_config(run_config: Mapping[str, Plain], app: PublishedApp | None) -> Mapping[str, Plain]:
    """Return a run's configuration; a key that a published app's project does not have is refused, as by `flwr run`.

    Raises:
        RunConfigError: there is such a key.
    """
    if app is None:
        return run_config
    known = {*app.bundle.config, NUM_ROUNDS_KEY}
    if unknown := sorted(run_config.keys() - known):
        names = ", ".join(sorted(app.bundle.config)) or "none"
        where = f"not in [tool.flwr.app.config] of {app.bundle.title} (its keys: {names[:1000]})"
        raise RunConfigError(f"{', '.join(unknown)[:200]}: {where}")
    return run_config
