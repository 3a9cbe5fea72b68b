"""A manager that leads: builds all its parts and runs them while a block runs.

A leader that ends leaves its runs and their servers as they are; the next one resumes them.
"""

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp

from fedops_mqtt.apps import BundleLimits
from fedops_mqtt.bus import BusOptions, Connection, StatusOwner, client_id_of
from fedops_mqtt.bus.address import parse_broker_urls
from fedops_mqtt.core.fencing import Stamp, start_of
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.core.ownership import new_instance
from fedops_mqtt.core.run_member import StopRequested
from fedops_mqtt.manager.actions import Executor, TriggerPublisher
from fedops_mqtt.manager.api.app import Api
from fedops_mqtt.manager.api.http import access_rules, guarded
from fedops_mqtt.manager.api.prometheus import ManagerMetrics
from fedops_mqtt.manager.app_store import AppStore, PublishRules
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.context import Clock, ManagerContext, RunEventQueue
from fedops_mqtt.manager.errors import TasksFileError
from fedops_mqtt.manager.events import Events
from fedops_mqtt.manager.home_assistant import HomeAssistant
from fedops_mqtt.manager.journal import Journal
from fedops_mqtt.manager.loop import Housekeeping, Manager
from fedops_mqtt.manager.open_runs import OpenRuns, RunStatusPublisher
from fedops_mqtt.manager.run_service import RunService
from fedops_mqtt.manager.servers import Servers
from fedops_mqtt.manager.tasks import Tasks
from fedops_mqtt.protocol import Channel, ManagerCondition, ManagerStatus, filter_for, topics, utc_now
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.http_server import serving, url_of
from fedops_mqtt.runtime.machine import is_loopback, split_address
from fedops_mqtt.runtime.process_identity import boot_id, since_boot_s
from fedops_mqtt.runtime.settings import ManagerSettings, inherited_environment

logger = logging.getLogger(__name__)

_READ = (
    Channel.CLIENT_STATUS,
    Channel.CLIENT_METRICS,
    Channel.SERVER_STATUS,
    Channel.SERVER_METRICS,
    Channel.RUN_STATUS,
)
_POLL_S = 0.05
_SHUTDOWN_S = 2
"""Requests still open when the manager ends are cut after this."""

Front = Callable[[FastAPI, Api, ManagerContext], AbstractAsyncContextManager[Callable[[ASGIApp], ASGIApp]]]
"""Adds the page to the API's application while its block runs; yields what wraps the application's access control."""


class Leader:
    """A leader's control from outside."""

    def __init__(self, context: ManagerContext, servers: Servers) -> None:
        self._context = context
        self._servers = servers

    async def end_runs(self) -> None:
        """Stop every active run, and wait for the end of the servers, at most two times their grace."""
        for run in self._context.open_runs:
            self._context.event_queue.put(run.run_id, StopRequested("the manager was stopped"))
        grace_s = self._context.settings.server_stop_grace_s
        try:
            async with asyncio.timeout(2 * grace_s):
                # The ends of runs and of processes have no common event.
                while self._servers.num_running or not all(run.has_ended for run in self._context.open_runs):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            logger.warning("left with servers still running", extra={"grace_s": grace_s})


@asynccontextmanager
async def leading(
    settings: ManagerSettings,
    journal: Journal,
    tasks: Tasks,
    *,
    term: int,
    listening: socket.socket,
    bundle_server: str,
    front: Front | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncIterator[Leader]:
    """Watch, decide and act while the block runs.

    Raises:
        BusError: the broker's URL cannot be used.
    """
    apps = AppStore(journal, settings.state_dir.resolve() / "manager" / "apps", _publish_rules(settings))
    await apps.load()
    tasks.published = apps.current
    try:
        tasks.refresh()
    except TasksFileError as error:  # it has changed on standby: open runs have their tasks, and need a manager
        logger.error("the tasks file cannot be used, its last state holds", extra={"problem": str(error)})
    runs = await journal.call(journal.open_runs)
    # An older program did not store a run's task: take it from the tasks file.
    open_runs = OpenRuns([replace(each, task=each.task or tasks.get(each.run.spec.task_id)) for each in runs])
    is_in_use = any(not each.run.has_ended for each in runs)
    clock = await _start_clock(journal, is_in_use=is_in_use, wall_clock=wall_clock)
    owner = _owner(settings, journal, term=term, url=url_of(listening, access_rules(settings)))
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(_on_bus(settings, owner, open_runs))
        bus_reader = BusReader(Fleet(), open_runs, tasks)
        context = ManagerContext(
            settings=settings,
            term=term,
            clock=clock,
            journal=journal,
            tasks=tasks,
            apps=apps,
            open_runs=open_runs,
            bus_reader=bus_reader,
            event_queue=RunEventQueue(),
            connection=connection,
            events=Events(),
            meters=ManagerMetrics(bus_reader=bus_reader, open_runs=open_runs, connection=connection),
        )
        run_service = RunService(context, bundle_server=bundle_server)
        yield await _at_work(context, run_service, owner, listening, stack, front or _no_page)


async def _start_clock(journal: Journal, *, is_in_use: bool, wall_clock: Callable[[], float]) -> Clock:
    """Return the clock of this term. While a run is open it goes on as in the last term of this boot of this host.

    Else a host that gets the time of day late (no battery, NTP) would bring running runs to their limits at once.
    """
    boot, not_before, began = boot_id(), await journal.call(journal.last_time), None
    if boot is not None and is_in_use:
        began = await journal.call(journal.boot_time, boot)
    clock = Clock(now=wall_clock() if began is None else began + since_boot_s(), not_before=not_before)
    if boot is not None:
        await journal.call(journal.note_boot_time, boot, clock.now() - since_boot_s())
    return clock


async def _at_work(
    context: ManagerContext,
    run_service: RunService,
    owner: StatusOwner,
    listening: socket.socket,
    stack: AsyncExitStack,
    front: Front,
) -> Leader:
    """Start all parts, each after those that it uses."""
    servers = _servers(context)
    trigger_publisher = TriggerPublisher(context.connection, context.event_queue.put)
    executor = Executor(context, servers=servers, trigger_publisher=trigger_publisher)
    status_publisher = RunStatusPublisher(context.open_runs, term=context.term)
    context.open_runs.listener = status_publisher.changed
    manager = Manager(
        context, status_publisher=status_publisher, servers=servers, executor=executor, run_service=run_service
    )
    housekeeping = Housekeeping(context, servers=servers, executor=executor)
    rules = access_rules(context.settings)
    api = Api(context, run_service)
    app = api.app()
    wrap = await stack.enter_async_context(front(app, api, context))
    served = wrap(guarded(app, rules))
    parts: list[AbstractAsyncContextManager[None]] = [
        trigger_publisher.publishing(),
        servers.tending(),
        alongside(status_publisher.run(context.connection, owner), name="run-statuses"),
        alongside(housekeeping.run(), name="housekeeping"),
        alongside(manager.listen(), name="bus-events"),
        alongside(manager.run(), name="manager"),
        # The page is live over a WebSocket; uvicorn's older way to serve one uses what websockets deprecates.
        serving(served, listening, rules, name="manager-api", shutdown_s=_SHUTDOWN_S, websockets="websockets-sansio"),
    ]
    prefix = context.settings.home_assistant
    if prefix is not None:
        parts.insert(-1, alongside(HomeAssistant(context, prefix=prefix).run(), name="home-assistant"))
    for part in parts:
        await stack.enter_async_context(part)
    return Leader(context, servers)


@asynccontextmanager
async def _no_page(app: FastAPI, api: Api, context: ManagerContext) -> AsyncIterator[Callable[[ASGIApp], ASGIApp]]:
    text = "This manager has no page: pip install 'fedops-mqtt[dashboard]' and start it again. Its API: /api/v1"
    app.get("/", include_in_schema=False)(lambda: PlainTextResponse(text))
    yield lambda wrapped: wrapped


def _on_bus(
    settings: ManagerSettings, owner: StatusOwner, open_runs: OpenRuns
) -> AbstractAsyncContextManager[Connection]:
    return owner.on_bus(
        settings.broker,
        client_id=client_id_of(settings.broker_user),
        subscriptions=[filter_for(channel) for channel in _READ],
        options=BusOptions.from_settings(settings),
        counts_drops=True,
        may_move=lambda: all(run.has_ended for run in open_runs),
    )


def _publish_rules(settings: ManagerSettings) -> PublishRules:
    # A broker with TLS belongs to a fleet, also on loopback: the fleet has a key, and devices accept only signed apps.
    brokers = parse_broker_urls(settings.broker)
    is_alone = is_loopback(split_address(settings.http)[0]) and all(
        not each.is_tls and is_loopback(each.host) for each in brokers
    )
    return PublishRules(
        limits=BundleLimits(packed_bytes=settings.app_max_bytes),
        signers=tuple(filter(None, settings.app_signers.replace(",", " ").split())),
        takes_unsigned=is_alone and not settings.app_signers,
        num_kept=settings.keep_apps,
    )


def _servers(context: ManagerContext) -> Servers:
    return Servers(
        apps=context.apps,
        journal=context.journal,
        report=context.event_queue.put,
        folder=context.settings.state_dir.resolve() / "manager",
        inherited=inherited_environment(),
        common_settings=_common_settings(context.settings),
        grace_s=context.settings.server_stop_grace_s,
    )


def _common_settings(settings: ManagerSettings) -> dict[str, object]:
    """Return the settings that all servers get, by name; a task's own `env` outweighs them."""
    password = settings.broker_password
    values: dict[str, object] = {
        "broker": settings.broker,
        "broker_user": settings.broker_user,
        "broker_password": password.get_secret_value() if password else None,
        "broker_ca_file": settings.broker_ca_file,
        "broker_cert_file": settings.broker_cert_file,
        "broker_key_file": settings.broker_key_file,
        "broker_first_try_s": settings.broker_first_try_s,
        "broker_return_s": settings.broker_return_s,
        "keepalive_s": settings.keepalive_s,
        "heartbeat_s": settings.heartbeat_s,
        "subscribe_qos": settings.subscribe_qos,
        "store": settings.store if "://" in settings.store else Path(settings.store).expanduser(),
        "state_dir": settings.state_dir,
        "log_level": settings.log_level,
    }
    return {name: value.resolve() if isinstance(value, Path) else value for name, value in values.items()}


def _owner(settings: ManagerSettings, journal: Journal, *, term: int, url: str) -> StatusOwner:
    instance = new_instance(start_of(term, time.time_ns() // 1_000_000), secrets.token_hex(6))

    def status(stamp: Stamp, condition: ManagerCondition, reason: str | None = None) -> ManagerStatus:
        return ManagerStatus(
            instance=instance,
            epoch=stamp.epoch,
            seq=stamp.seq,
            at=utc_now(),
            heartbeat_s=settings.heartbeat_s,
            status=condition,
            reason=reason,
            term=term,
            url=url,
        )

    return StatusOwner(
        topic=topics.manager_status(),
        instance=instance,
        make_snapshot=lambda stamp: status(stamp, ManagerCondition.LEADING),
        make_will=lambda stamp: status(stamp, ManagerCondition.MANAGER_OUT, "lost"),
        make_goodbye=lambda stamp, reason: status(stamp, ManagerCondition.MANAGER_OUT, reason),
        epochs=_JournalEpochs(journal),
        heartbeat_s=settings.heartbeat_s,
    )


class _JournalEpochs:
    """The manager's epoch in its journal; the status owner calls it from worker threads."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def load(self) -> int:
        return self._journal.wait_for(self._journal.read_epoch, "manager")

    def save(self, epoch: int) -> None:
        self._journal.wait_for(self._journal.write_epoch, "manager", epoch)
