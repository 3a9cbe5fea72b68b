"""FL servers as Kubernetes Jobs: one Job and its Secrets a launch, found again by their names.

A Job's server has ended when no pod of it is left that may run. When the API server does not answer, or a pod's node is
lost, the end is unknown: that is reported, and no other launch is started. The library `kubernetes` is imported when
the first such task is launched.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedops_mqtt.manager.kubernetes_cluster import Cluster, JobView
from fedops_mqtt.manager.kubernetes_manifests import (
    KubernetesError,
    job_manifest,
    job_name,
    secret_manifests,
    wanted_of,
)
from fedops_mqtt.manager.launcher import Liveness, with_log_tail
from fedops_mqtt.manager.remote_launcher import START_SHARE, RemoteLaunch, read_end

logger = logging.getLogger(__name__)

POLL_S = 1.0
DRAIN_S = 5.0
"""An ended server's log is read to its end within this."""
FENCE_S = 60.0
"""Earlier launches of the run are deleted within this, or the next is not created."""


class KubernetesServer:
    """A server as a Job. `report` is called with the problem when its state is unknown, and with None afterwards.

    `is_resumed`: an earlier manager created the Job, so it may run although this one has not seen it yet.
    """

    def __init__(
        self,
        launch: RemoteLaunch,
        report: Callable[[str | None], None],
        *,
        grace_s: float,
        is_resumed: bool = False,
    ) -> None:
        self.log_path = launch.log_path
        self._launch = launch
        self._report = report
        self._grace_s = grace_s
        self._is_resumed = is_resumed
        self._name = job_name(launch.run_id, launch.launch)
        self._cluster: Cluster | None = None
        self._problem: str | None = None
        self._has_ended = False
        self._is_to_end = False
        self._began = time.monotonic()
        self._log: LogCopy | None = None

    @property
    def is_running(self) -> bool:
        """True until it is known that nothing of the launch can run."""
        return not self._has_ended

    async def start(self, order: bytes) -> None:
        """Create Secrets and Job, after every earlier launch of the run is deleted.

        Raises:
            KubernetesError: the cluster refuses them.
        """
        try:
            await self._fence()
            secrets = secret_manifests(self._launch, order)
            job = job_manifest(self._launch, self._grace_s, len(secrets))
            await asyncio.to_thread((await self._open()).create, secrets, job)
            logger.info("created a Kubernetes Job", extra={"run_id": self._launch.run_id, "job": self._name})
        except ConnectionError as error:  # they may have been created: `wait` will see them
            self.note_problem(str(error))
        except KubernetesError:
            with suppress(ConnectionError, KubernetesError):  # the Secrets, where the Job was refused
                await asyncio.to_thread((await self._open()).delete, self._name)
            raise

    async def wait(self) -> str:
        """Wait for the launch's end, however long that takes; return how it ended."""
        try:
            reason = await self._wait()
        except KubernetesError as error:  # no rights any more, for example: its state cannot be read
            reason = str(error)
        finally:
            if self._log is not None:
                self._log.stop()
                self._log = None
        self._has_ended = True
        return reason

    async def check(self) -> Liveness:
        """Query the API server."""
        view = await self._look()
        if view is None or view.lost is not None:
            return Liveness.UNKNOWN
        return Liveness.ENDED if view.has_ended else Liveness.ALIVE

    async def end(self, outcome: str | None, reason: str, *, grace_s: float) -> None:
        """Delete the Job until nothing of it is left; the cluster kills what does not end within the pod's grace."""
        self._is_to_end = True
        while self.is_running:
            with suppress(ConnectionError, KubernetesError):
                await asyncio.to_thread((await self._open()).delete, self._name)
            await asyncio.sleep(POLL_S)

    async def _wait(self) -> str:
        ever_seen = self._is_resumed
        while True:
            view = await self._look()
            age_s = time.monotonic() - self._began
            is_late = age_s > self._launch.start_limit_s * START_SHARE
            if view is None:
                if not ever_seen and age_s > self._launch.start_limit_s and self._log is None:
                    return f"FL server cannot be started: {self._problem}"
            elif view.has_ended:
                return await self._describe(view)
            else:
                ever_seen = True
                self._copy_log(view)
                if is_late and not view.has_started and view.waits and not self._is_to_end:
                    return await self._give_up(view.waits)
            await asyncio.sleep(POLL_S)

    async def _give_up(self, why: str) -> str:
        self._is_to_end = True
        while True:
            with suppress(ConnectionError):
                await asyncio.to_thread((await self._open()).delete, self._name)
            view = await self._look()
            if view is not None and view.has_ended:
                return f"FL server cannot be started: its pod waits: {why}"
            await asyncio.sleep(POLL_S)

    async def _describe(self, view: JobView) -> str:
        self._copy_log(view)
        if self._log is not None:
            await asyncio.to_thread(self._log.finish, DRAIN_S)
        with suppress(ConnectionError, KubernetesError):  # else the cluster does after a while
            await asyncio.to_thread((await self._open()).delete, self._name)
        if (reason := read_end(self._launch)) is not None:
            return reason
        how = view.ended or ("its Job is done" if view.exists else "its Job is not there")
        return with_log_tail(f"FL server's pod has ended: {how}", self.log_path)

    async def _fence(self) -> None:
        cluster, until = await self._open(), time.monotonic() + FENCE_S
        for name in await asyncio.to_thread(cluster.launches_of, self._launch.run_id):
            while name != self._name and not (await asyncio.to_thread(cluster.look, name)).has_ended:
                if time.monotonic() > until:
                    raise KubernetesError(f"Job {name}, an earlier launch of the run, does not end")
                await asyncio.to_thread(cluster.delete, name)
                await asyncio.sleep(POLL_S)

    async def _look(self) -> JobView | None:
        try:
            view = await asyncio.to_thread((await self._open()).look, self._name)
        except (ConnectionError, KubernetesError) as error:
            self.note_problem(f"the FL server's cluster does not answer: {error}")
            return None
        is_lost = view.lost is not None and not self._is_to_end
        self.note_problem(f"the FL server's node may be lost: {view.lost}" if is_lost else None)
        return view

    async def _open(self) -> Cluster:
        if self._cluster is None:
            namespace = wanted_of(self._launch.task).namespace
            self._cluster = await asyncio.to_thread(Cluster, namespace)
        return self._cluster

    def _copy_log(self, view: JobView) -> None:
        if view.has_started and self._log is None and self._cluster is not None:
            self._log = LogCopy(self._cluster, self._name, self.log_path)
            self._log.start()

    def note_problem(self, problem: str | None) -> None:
        """Report why it is not known whether the server runs, once; None, or the next look at its Job: it is known."""
        if problem != self._problem:
            self._problem = problem
            self._report(problem)


class LogCopy(threading.Thread):
    """Copies the log of a launch's pod into a file, from its beginning, until it is stopped."""

    def __init__(self, cluster: Cluster, name: str, path: Path) -> None:
        super().__init__(name=f"log-{name}", daemon=True)
        self._cluster = cluster
        self._name = name
        self._path = path
        self._last = b""
        self._problem = ""
        self._is_over = threading.Event()
        self._has_read_to_end = threading.Event()

    def run(self) -> None:
        """Follow the log; a connection that breaks is made again, and no line is written twice."""
        while not self._is_over.is_set():
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # The first time from the beginning: what an earlier manager copied comes again.
                with self._path.open("ab" if self._last else "wb", buffering=0) as file:
                    while not self._is_over.is_set():
                        self._follow(file)
                        self._is_over.wait(POLL_S)
            except Exception as error:  # the disk's, or urllib3's and the library's of a connection that broke
                self._note_problem(error)
            self._is_over.wait(POLL_S)

    def stop(self) -> None:
        """Leave the log alone."""
        self._is_over.set()

    def finish(self, within_s: float) -> None:
        """Wait until an ended pod's log was read to its end."""
        self._has_read_to_end.clear()
        self._has_read_to_end.wait(within_s)
        self.stop()

    def _note_problem(self, error: Exception) -> None:
        is_of_disk = isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)
        level = logging.WARNING if is_of_disk and str(error) != self._problem else logging.DEBUG
        self._problem = str(error)
        logger.log(level, "the log of a pod was not copied", extra={"job": self._name, "problem": self._problem})

    def _follow(self, file: Any) -> None:
        pod = self._cluster.pod_of(self._name)
        if pod is None:
            return
        response = self._cluster.log(pod)
        try:
            for line in response:
                at, _, text = line.partition(b" ")
                if at > self._last and not self._is_over.is_set():
                    file.write(text if text.endswith(b"\n") else text + b"\n")
                    self._last = at
            self._has_read_to_end.set()
        finally:
            response.close()
