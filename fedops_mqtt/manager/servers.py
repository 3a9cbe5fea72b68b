"""The FL servers of the open runs: launches them, waits for their end, probes those that are out on the bus.

All of this runs in tasks of its own; each result is reported as an event of the run.
"""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import RunEvent, ServerExited, ServerHostLost, ServerUnreachable
from fedops_mqtt.manager import launcher
from fedops_mqtt.manager.app_store import AppStore
from fedops_mqtt.manager.errors import BundleMissingError, LeaseLostError
from fedops_mqtt.manager.final_status import read_kept, read_stored
from fedops_mqtt.manager.journal import Journal, Launch
from fedops_mqtt.manager.kubernetes_launcher import KubernetesServer
from fedops_mqtt.manager.kubernetes_manifests import task_with_folder
from fedops_mqtt.manager.launcher import LaunchedServer, LaunchOrder, Liveness, ServerProcess
from fedops_mqtt.manager.line_probe import line_answers
from fedops_mqtt.manager.remote_launcher import ASK_EVERY_S, RemoteLaunch, RemoteServer
from fedops_mqtt.manager.remote_order import end_nonce, make_order, store_of
from fedops_mqtt.manager.tasks import TaskConfig
from fedops_mqtt.protocol import RunOutcome, check_run_id, clip
from fedops_mqtt.runtime.background import bare_error
from fedops_mqtt.runtime.files import delete_file, write_private
from fedops_mqtt.runtime.key_values import format_pairs
from fedops_mqtt.runtime.machine import host_id, host_name
from fedops_mqtt.runtime.process_identity import is_process
from fedops_mqtt.runtime.settings import ENV_PREFIX, environment_without_settings
from fedops_mqtt.runtime.settings_file import SettingsFileError

logger = logging.getLogger(__name__)


Report = Callable[[str, RunEvent], None]
Work = Callable[[], Coroutine[Any, Any, object]]

MAX_PAUSE_S = 60.0
"""Between two tries to supervise a server that may run on another machine."""
NOT_STARTED = "the FL server was not started"


@dataclass(slots=True, kw_only=True)
class RunServer:
    """What is known of one run's server."""

    task_id: str
    wanted: int | None = None
    """The launch that is to run; any other one is ended as soon as it is found."""
    process: LaunchedServer | None = None
    life: asyncio.Task[None] | None = None
    """Launches it and waits for its end."""
    watch: Work | None = None
    """The part of it that waits for the end of `process`."""
    stop: tuple[RunOutcome | None, str] = (None, "another launch goes on with the run")
    """The run's outcome, and why the server is ended."""
    launch_elsewhere: int | None = None
    """The launch, of a process on another manager's host."""
    log_folder: Path | None = None
    """Of a manager with another state folder; None: this one's."""
    store: str | None = None
    """Of a server whose final status may be in no file of this host."""
    probed_at: float | None = None
    is_probing: bool = False


class Servers:
    """The servers by run; `report` is called in the event loop.

    Args:
        folder: logs and secrets of the runs.
        inherited: environment that every server starts from.
        common_settings: settings that every server gets, by name.
        grace_s: between asking a server to end and killing it.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        apps: AppStore,
        report: Report,
        folder: Path,
        inherited: Mapping[str, str],
        common_settings: Mapping[str, object],
        grace_s: float,
    ) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._journal = journal
        self._apps = apps
        self._report = report
        self._folder = folder
        self._inherited = inherited
        self._common_settings = common_settings
        self._grace_s = grace_s
        self._servers: dict[str, RunServer] = {}

    @asynccontextmanager
    async def tending(self) -> AsyncIterator[None]:
        """Launch and supervise while the block runs; at its end the servers are left running."""
        with bare_error():
            async with asyncio.TaskGroup() as self._group:
                try:
                    yield
                finally:
                    for task in self._tasks:
                        task.cancel()

    @property
    def num_running(self) -> int:
        """The number of servers that run, or are just being launched."""
        lives = (server.life for server in self._servers.values())
        return sum(life is not None and not life.done() for life in lives)

    def launch(self, run: Run, launch: int, secret: bytes, task: TaskConfig) -> None:
        """Start a run's server; an earlier launch of it is ended first."""
        server = self._server(run)
        server.wanted, server.launch_elsewhere, server.log_folder = launch, None, None
        server.store = None if task.is_local else self._store_of(task)
        work = partial(self._launch, server, run, launch, secret, task, after=server.life)
        server.life = self._spawn(work, "server", run.run_id, launch)

    def resume(self, run: Run, launches: list[Launch], secret: bytes, task: TaskConfig | None) -> None:
        """Find the server of a run that an earlier manager launched, and supervise it; start one that was not started.

        Only processes of this host are looked for and ended; of one on another manager's host only the bus and the
        line report. A server that a launch command or Kubernetes runs is found from any host.
        """
        server = self._server(run)
        server.wanted = None if run.has_ended else run.launch
        if run.has_ended:
            server.stop = (run.outcome, run.reason or "run ended")
        is_launched = bool(launches) and launches[-1].launch == run.launch
        if is_launched and run.host_problem is not None:  # an earlier manager's; a host that is still away is reported
            self._report(run.run_id, ServerHostLost(run.launch, None))
        if launches:
            self._find(server, run, launches[-1], secret, task)
        if is_launched:
            return
        if run.has_ended or task is None:
            self._report(run.run_id, ServerExited(run.launch, NOT_STARTED))
        else:
            self.launch(run, run.launch, secret, task)

    def _find(self, server: RunServer, run: Run, known: Launch, secret: bytes, task: TaskConfig | None) -> None:
        is_on_other_host = not _is_here(known)
        if is_on_other_host or (task is not None and not task.is_local):
            server.store = self._store_of(task)
        if task is not None and not task.is_local:
            work = partial(self._resume_elsewhere, server, run, known, secret, task)
            server.life = self._spawn(work, "server", run.run_id, known.launch)
            return
        server.log_folder = Path(known.log_path).parent  # of a manager that may have had another state folder
        if not is_on_other_host:
            server.life = self._spawn(partial(self._resume, server, known), "server", run.run_id, known.launch)
            return
        logger.info("an FL server is on another host", extra={"run_id": run.run_id, "host": known.host})
        server.launch_elsewhere = server.wanted = known.launch
        if not run.has_ended:  # the server may have ended while neither a manager nor the broker was there
            look = partial(self._report_final_status, server, known.run_id, known.launch)
            self._spawn(look, "final-status", run.run_id, known.launch)

    def end(self, run_id: str, outcome: RunOutcome | None, reason: str) -> None:
        """End a run's server if there is one; it gives its clients the reason. A second call changes nothing.

        `outcome` is the run's: the model of a failed one is not stored as a version. None: another launch continues
        the run.
        """
        server = self._servers.get(run_id)
        if server is None or server.wanted is None:
            return
        launch, server.wanted, server.stop = server.wanted, None, (outcome, reason)
        if server.launch_elsewhere is not None:
            self._report(run_id, ServerExited(server.launch_elsewhere, "FL server is on another host"))
            server.launch_elsewhere = None
        if server.process is not None:
            self._spawn(partial(server.process.end, outcome, reason, grace_s=self._grace_s), "end", run_id, launch)

    def probe(self, run: Run, now: float, *, every_s: float) -> None:
        """Request a server's line every `every_s`, and report when it does not answer."""
        server = self._server(run)
        if run.server is None or run.server.server_ip is None or server.is_probing:
            return
        if server.probed_at is None:
            server.probed_at = now
        if now - server.probed_at >= every_s:
            server.probed_at, server.is_probing = now, True
            work = partial(self._probe, server, run.run_id, run.launch, run.server.server_ip, every_s)
            self._spawn(work, "probe", run.run_id, run.launch)

    def is_connected(self, run_id: str) -> None:
        """End the probing of a server that is connected to the bus."""
        if run_id in self._servers:
            self._servers[run_id].probed_at = None

    def forget(self, run_id: str) -> None:
        """Remove the secret and the state of an archived run."""
        delete_file(self._secret_file(run_id))
        self._servers.pop(run_id, None)

    def delete_logs(self, run_id: str) -> None:
        """Delete the server logs of a run that is no longer in the journal."""
        shutil.rmtree(self._log_folder(run_id), ignore_errors=True)

    def _server(self, run: Run) -> RunServer:
        return self._servers.setdefault(run.run_id, RunServer(task_id=run.spec.task_id))

    def _store_of(self, task: TaskConfig | None) -> str | None:
        store: str | None = str(self._common_settings["store"])
        if task is not None:
            with suppress(OSError, SettingsFileError):  # a bundle that cannot be read is the launch's problem
                store = task.env.get(f"{ENV_PREFIX}STORE", store) if task.is_local else store_of(task, str(store))
        return store

    def _log_folder(self, run_id: str) -> Path:
        return self._folder / "runs" / check_run_id(run_id)

    def _spawn(self, work: Work, what: str, run_id: str, launch: int) -> asyncio.Task[None]:
        if self._group is None:
            raise RuntimeError("servers are tended inside `async with servers.tending()` only")
        task = self._group.create_task(self._contained(work, run_id, launch), name=f"{what}-{run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _contained(self, work: Work, run_id: str, launch: int) -> None:
        """Do one run's work; what is wrong with it is that run's reason: the other runs need their manager.

        What is wrong here does not end a server on another machine: the work is done again until its end is known.
        """
        problem, pause_s = "", ASK_EVERY_S
        while True:
            try:
                await work()
                return
            except (SQLAlchemyError, LeaseLostError):  # nothing can be written, or another manager leads: these end it
                raise
            except Exception as error:
                before, problem = problem, f"FL server cannot be started or supervised: {type(error).__name__}: {error}"
                if problem != before:
                    logger.exception("an FL server cannot be supervised", extra={"run_id": run_id, "launch": launch})
            server = self._servers.get(run_id)
            if server is None or not isinstance(server.process, RemoteServer | KubernetesServer):
                self._report(run_id, ServerExited(launch, clip(problem)))
                return
            server.process.note_problem(clip(problem))
            if server.watch is not None and asyncio.current_task() is server.life:
                work = server.watch
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _launch(
        self,
        server: RunServer,
        run: Run,
        launch: int,
        secret: bytes,
        task: TaskConfig,
        *,
        after: asyncio.Task[None] | None,
    ) -> None:
        server.watch = None
        if after is not None and not after.done():
            await self._see_end(server, run.run_id, launch, after)
        row = self._row(run, launch)
        if server.wanted != launch:  # its run has ended meanwhile
            await self._exited(server, row, NOT_STARTED)
            return
        await self._journal.call(self._journal.add_launch, row)
        try:
            process = await self._start(run, row, secret, task)
        except (OSError, SettingsFileError, BundleMissingError) as error:
            what = str(error)
            if isinstance(error, OSError) and error.filename:
                what = f"{error.strerror}: {error.filename}"
            await self._exited(server, row, f"FL server cannot be started: {what}")
            return
        await self._watch(server, row, process)

    async def _see_end(self, server: RunServer, run_id: str, launch: int, before: asyncio.Task[None]) -> None:
        """Wait for the end of an earlier launch; until then the next one is not late, and none follows it."""
        self._report(run_id, ServerHostLost(launch, "an earlier launch of its FL server has not been seen to end"))
        if server.process is not None and server.process.is_running:  # two servers of a run must never run at once
            await server.process.end(*server.stop, grace_s=self._grace_s)
        await asyncio.wait([before])
        self._report(run_id, ServerHostLost(launch, None))

    async def _start(self, run: Run, row: Launch, secret: bytes, task: TaskConfig) -> LaunchedServer:
        launch = row.launch
        if run.spec.app is not None:
            await self._journal.call(self._apps.fetch, run.spec.app.digest)
        if task.is_local:
            write_private(self._secret_file(run.run_id), secret.hex().encode())
            process = await launcher.launch(self._order(run, launch, task))
            await self._note_process(row, process)
            return process
        settings = self._settings(run, launch, task)
        ordered = task_with_folder(task) if task.kubernetes else task
        order = await asyncio.to_thread(make_order, run.run_id, launch, ordered, settings, secret)
        server = self._elsewhere_server(run, row, secret, task)
        await server.start(order)
        return server

    def _row(self, run: Run, launch: int) -> Launch:
        return Launch(
            run_id=run.run_id,
            launch=launch,
            log_path=str(self._log_path(run.run_id, launch)),
            secret_file=str(self._secret_file(run.run_id)),
            host=host_id(),
        )

    async def _note_process(self, row: Launch, process: ServerProcess) -> None:
        note = self._journal.note_process
        await self._journal.call(note, row.run_id, row.launch, pid=process.pid, process_key=process.key)

    def _elsewhere_server(
        self,
        run: Run,
        row: Launch,
        secret: bytes,
        task: TaskConfig,
        command: ServerProcess | None = None,
        *,
        is_resumed: bool = False,
    ) -> RemoteServer | KubernetesServer:
        def report(problem: str | None) -> None:
            self._report(run.run_id, ServerHostLost(row.launch, problem))

        place = RemoteLaunch(
            run_id=run.run_id,
            launch=row.launch,
            task_id=run.spec.task_id,
            task=task,
            log_path=Path(row.log_path),
            final_status_file=self._final_status_file(run.run_id, row.launch),
            order_file=self._folder / "secrets" / f"{run.run_id}.order-{row.launch}",
            nonce=end_nonce(secret, row.launch),
            start_limit_s=run.spec.limits.server_start_s,
            environment=environment_without_settings(self._inherited),
        )
        if task.kubernetes is not None:
            return KubernetesServer(place, report, grace_s=self._grace_s, is_resumed=is_resumed)
        return RemoteServer(place, report, partial(self._note_process, row), command, is_resumed=is_resumed)

    async def _resume_elsewhere(
        self, server: RunServer, run: Run, known: Launch, secret: bytes, task: TaskConfig
    ) -> None:
        """Supervise a server on another machine again, with its launch command where that still runs here."""
        command = None
        row = self._row(run, known.launch)
        if known.log_path == row.log_path and known.pid and known.process_key and _is_here(known):
            command = launcher.find(known.pid, known.process_key, Path(known.log_path))
        elif known.log_path != row.log_path:  # of a manager elsewhere, or with another state folder
            await self._journal.call(self._journal.add_launch, row)
        await self._watch(server, row, self._elsewhere_server(run, row, secret, task, command, is_resumed=True))

    async def _resume(self, server: RunServer, known: Launch) -> None:
        log_path = Path(known.log_path)
        if known.pid is None or known.process_key is None:
            process = await asyncio.to_thread(launcher.search, known.run_id, known.launch, log_path)
        else:
            process = launcher.find(known.pid, known.process_key, log_path)
        if process is None:
            reason = known.exit_reason or launcher.with_log_tail(launcher.ENDED_UNSEEN, log_path)
            await self._exited(server, known, reason)
            return
        logger.info("found the FL server of an earlier manager", extra={"run_id": known.run_id, "pid": process.pid})
        await self._watch(server, known, process)

    async def _watch(self, server: RunServer, row: Launch, process: LaunchedServer) -> None:
        server.process = process
        if server.wanted != row.launch:
            self._spawn(partial(process.end, *server.stop, grace_s=self._grace_s), "end", row.run_id, row.launch)
        server.watch = partial(self._await_exit, server, row, process)
        await server.watch()

    async def _await_exit(self, server: RunServer, row: Launch, process: LaunchedServer) -> None:
        reason = await process.wait()
        if server.process is process:
            server.process = None
        await self._exited(server, row, reason)

    async def _exited(self, server: RunServer, row: Launch, reason: str) -> None:
        await self._journal.call(self._journal.note_exit, row.run_id, row.launch, reason)
        logger.info("FL server has ended", extra={"run_id": row.run_id, "launch": row.launch, "reason": reason})
        await self._report_final_status(server, row.run_id, row.launch)
        self._report(row.run_id, ServerExited(row.launch, reason))

    async def _probe(self, server: RunServer, run_id: str, launch: int, address: str, within_s: float) -> None:
        try:
            if await line_answers(address, within_s=within_s):
                return
            if server.process is not None and await server.process.check() is Liveness.UNKNOWN:
                return  # `check` has reported that; the server may be alive
            if not await self._report_final_status(server, run_id, launch):
                self._report(run_id, ServerUnreachable(launch))
        finally:
            server.is_probing = False

    async def _report_final_status(self, server: RunServer, run_id: str, launch: int) -> bool:
        """Report the final status that a launch left in its file, or in the store; False where there is none."""
        which = {"task_id": server.task_id, "run_id": run_id}
        status = await asyncio.to_thread(read_kept, self._final_status_file(run_id, launch), launch=launch, **which)
        if status is None and server.store is not None:
            status = await asyncio.to_thread(read_stored, server.store, launch=launch, **which)
        if status is not None:
            self._report(run_id, status)
        return status is not None

    def _settings(self, run: Run, launch: int, task: TaskConfig) -> dict[str, object]:
        """Return a server's settings by name, without those that name files of this host."""
        spec = run.spec
        return {
            **self._common_settings,
            "task_id": spec.task_id,
            "run_id": run.run_id,
            "launch": launch,
            "join": spec.join,
            "listen": task.listen if _has_own_listen(task) else None,
            "advertise": task.advertise,
            "num_rounds": spec.num_rounds or None,
            "min_clients": spec.min_clients,
            "join_limit_s": spec.limits.join_s,
            "run_limit_s": spec.limits.run_s,
            "round_limit_s": spec.limits.round_s,
            "app_file": self._apps.path(spec.app.digest) if spec.app else None,
            "run_config": format_pairs(spec.run_config) or None,
        }

    def _order(self, run: Run, launch: int, task: TaskConfig) -> LaunchOrder:
        log_path = self._log_path(run.run_id, launch)
        own = {
            **self._settings(run, launch, task),
            "run_secret_file": self._secret_file(run.run_id),
            "final_status_file": self._final_status_file(run.run_id, launch),
            "stop_reason_file": launcher.stop_reason_file(log_path),
        }
        return LaunchOrder(
            run_id=run.run_id,
            launch=launch,
            command=(*launcher.command_of(task.command, task.module), *task.args),
            cwd=task.cwd or Path.cwd(),
            environment=launcher.child_environment(self._inherited, own, task.env, settings_file=task.config),
            log_path=log_path,
        )

    def _log_path(self, run_id: str, launch: int) -> Path:
        return self._log_folder(run_id) / f"server-{launch}.log"

    def _secret_file(self, run_id: str) -> Path:
        return self._folder / "secrets" / run_id

    def _final_status_file(self, run_id: str, launch: int) -> Path:
        known = self._servers.get(run_id)
        folder = known.log_folder if known is not None else None
        return (folder or self._log_folder(run_id)) / f"server-{launch}.last-word.json"


def _is_here(launch: Launch) -> bool:
    """Whether a launch is this host's; older programs wrote its bare name, and a host that runs it may be renamed."""
    return launch.host in (None, host_name(), host_id()) or is_process(launch.pid, launch.process_key)


def _has_own_listen(task: TaskConfig) -> bool:
    """Whether the task's address is used; else its bundle's is, or, on another machine, any free port."""
    return "listen" in task.model_fields_set or (task.is_local and task.config is None)
