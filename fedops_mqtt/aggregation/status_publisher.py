"""Publishes for an FL server on the bus, and reads its clients: a thread with an event loop, beside the strategy's.

Nothing here ever waits for the broker, except `finish`: training goes on without one, and is published later.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from fedops_mqtt.bus import (
    BusEvent,
    BusOptions,
    ConflictingInstanceError,
    Connected,
    ConnectError,
    Connection,
    EpochStore,
    Publication,
    PublishQueue,
    Received,
    StatusOwner,
    client_id_of,
)
from fedops_mqtt.core.fencing import LAST_SEQ
from fedops_mqtt.line.members import LineMember
from fedops_mqtt.protocol import (
    MAX_TEXT_CHARS,
    Channel,
    ClientStatus,
    LastRun,
    MemberCondition,
    MetricsCutter,
    Outcome,
    ReasonCode,
    Roster,
    ServerClient,
    ServerCondition,
    ServerMetrics,
    ServerStatus,
    Transport,
    clip,
    count_of,
    filter_for,
    topics,
    utc_now,
    with_clients,
)

_log = logging.getLogger(__name__)

_MAX_CLIENT_REASON = 200
"""Of a client's: a run may have thousands, and each client's own status has the whole of it."""

_CONDITIONS = {
    Outcome.FINISHED: MemberCondition.FINISHED,
    Outcome.FAILED: MemberCondition.FAILED,
    Outcome.STOPPED: MemberCondition.STOPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSnapshot:
    """The FL server's whole condition, without the stamp that its connection gives it."""

    task_id: str
    run_id: str
    launch: int
    instance: str
    heartbeat_s: float
    agent: Mapping[str, str]
    status: ServerCondition = ServerCondition.STARTING
    reason: str | None = None
    reason_code: ReasonCode | None = None
    server_ip: str | None = None
    transport: Transport = Transport.LINE
    round: int = 0
    num_rounds: int = 0
    gl_model: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    model_path: str | None = None
    clients: Mapping[str, ServerClient] = field(default_factory=dict)

    def to_status(self, epoch: int, seq: int, parts: Roster | None = None) -> ServerStatus:
        """Return the status as it goes on the bus; what strategies and programs put here is cut to what it takes.

        `parts` remembers what earlier statuses listed of a run that has more clients than one lists.
        """
        status = ServerStatus(
            **self._identity(epoch, seq),
            status=self.status,
            reason=clip(self.reason),
            reason_code=self.reason_code,
            server_ip=self.server_ip,
            transport=self.transport,
            round=count_of(self.round),
            num_rounds=count_of(self.num_rounds),
            gl_model=count_of(self.gl_model),
            metrics=MetricsCutter(_log.debug).cut_numbers(self.metrics),
            model_path=clip(self.model_path, MAX_TEXT_CHARS),
            agent=dict(self.agent),
        )
        return with_clients(status, (parts or Roster()).part(self.clients))

    def to_will(self, epoch: int, seq: int, reason: str = "lost") -> ServerStatus:
        """Return the last will, or a goodbye: only the server's identity, that it is out, and why."""
        return ServerStatus(**self._identity(epoch, seq), status=ServerCondition.SERVER_OUT, reason=reason)

    def _identity(self, epoch: int, seq: int) -> dict[str, object]:
        return {
            "instance": self.instance,
            "epoch": epoch,
            "seq": seq,
            "at": utc_now(),
            "heartbeat_s": self.heartbeat_s,
            "task_id": self.task_id,
            "run_id": self.run_id,
            "launch": self.launch,
        }


def client_of(member: LineMember) -> ServerClient:
    """Return what the server reports of one member of its line."""
    if member.outcome is not None:
        status = _CONDITIONS[member.outcome]
    else:
        status = MemberCondition.TRAINING if member.is_present else MemberCondition.LOST
    return ServerClient(
        status=status,
        attempt=member.attempt,
        phase=member.phase if member.outcome is None else None,
        round=member.round or 0,
        reason=clip(member.reason, _MAX_CLIENT_REASON),
        reason_code=member.reason_code,
    )


_CALM_S = 0.2
"""Clients' phases are published together, at most this often; a round of a small model has a dozen of them in 20 ms."""
_MARGIN_S = 5.0
"""For the bus's thread: beyond a flush's own time-out, and to end, which takes no longer than its last packet."""
_LAST_OF_ITS_OWN = LAST_SEQ - 1
"""The `seq` of the status that is kept: above all that is published on this connection, below its last will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusCallbacks:
    """What is called for messages of the bus; in the bus's thread, must not block."""

    on_client_ended: Callable[[str, LastRun], None]
    """A client's own report that its training in this run has failed or was stopped."""
    on_replaced: Callable[[str], None]
    """Another process is this task's FL server now; the reason names it."""


class ServerStatusPublisher:
    """Publishes one FL server's status and metrics, and reads its clients. Every method may be called from any thread.

    Raises (on entry):
        BrokerUrlError: the broker's URL or a TLS file cannot be used.
    """

    def __init__(
        self,
        snapshot: ServerSnapshot,
        *,
        url: str,
        options: BusOptions,
        epochs: EpochStore,
        callbacks: BusCallbacks,
        keep_final_status: Callable[[ServerStatus], None],
    ) -> None:
        self._snapshot = snapshot
        self._url = url
        self._options = options
        self._epochs = epochs
        self._callbacks = callbacks
        self._keep_final_status = keep_final_status
        self._lock = threading.Lock()
        self._clients: dict[str, ServerClient] = {}
        self._roster = Roster()
        self._metrics = PublishQueue()
        self._is_update_planned = False
        self._was_connected = False
        self._is_replaced = False
        self._other_status: ServerStatus | None = None
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)

    @property
    def snapshot(self) -> ServerSnapshot:
        """The status that would be published right now."""
        with self._lock:
            return replace(self._snapshot, clients=dict(self._clients))

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result()  # without limit: what comes before it waits for nobody, and each of its errors is set
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call(self._leaving.set)
        # asyncio waits for its threads without limit: one may look up the broker's name, or use a folder that hangs
        self._thread.join(_MARGIN_S)
        if self._thread.is_alive():
            _log.warning("the thread of the bus has not ended, and is left", extra={"waited_s": _MARGIN_S})

    def update(self, *, is_urgent: bool = True, **changes: Any) -> None:
        """Change the snapshot and publish it: a new status at once, all else with what changes in the next moment."""
        with self._lock:
            before, self._snapshot = self._snapshot, replace(self._snapshot, **changes)
        self._plan_update(is_urgent and self._snapshot.status is not before.status)

    def update_client(self, client_mac: str, client: ServerClient) -> None:
        """Change the status of one client."""
        with self._lock:
            self._clients[client_mac] = client
        self._plan_update(False)

    def publish_metrics(self, metrics: ServerMetrics) -> None:
        """Publish metrics, now or when the broker is back."""
        publication = Publication(topic=topics.server_metrics(metrics.task_id), message=metrics)
        self._call(self._metrics.put, publication)

    def finish(self, timeout_s: float, **changes: Any) -> bool:
        """Keep the final status, publish it and wait until the broker has it; False when it was not in time.

        A server whose broker was not there from the first try on does not wait.
        """
        self._keep_final_status(replace(self.snapshot, **changes).to_status(self._owner.epoch, _LAST_OF_ITS_OWN))
        self.update(**changes)
        self._plan_update(True)
        if self._is_replaced or not self._thread.is_alive():
            return False
        flush = self._flush(timeout_s)
        try:
            flushing = asyncio.run_coroutine_threadsafe(flush, self._loop)
        except RuntimeError:  # the bus's thread has ended meanwhile, and its loop is closed
            flush.close()
            return False
        try:
            return flushing.result(timeout_s + _MARGIN_S)
        except (CancelledError, TimeoutError):  # another process has the topic by now, and the bus was left to it
            return False

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:  # whatever it is: `__enter__` waits for it, and a run outlives its bus
            if not self._started.done():
                self._started.set_exception(error)
                return
            _log.exception("the bus is lost to this server, its run goes on without")

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leaving = asyncio.Event()
        snapshot = self._snapshot
        self._topic = topics.server_status(snapshot.task_id)
        self._owner = StatusOwner(
            topic=self._topic,
            instance=snapshot.instance,
            make_snapshot=lambda stamp: self.snapshot.to_status(*stamp, parts=self._roster),
            make_will=lambda stamp: self.snapshot.to_will(*stamp),
            make_goodbye=None,
            epochs=self._epochs,
            heartbeat_s=snapshot.heartbeat_s,
            on_conflict=self._meet_conflicting_instance,
        )
        connection = self._connection = Connection(
            self._url,
            client_id=client_id_of(self._options.user or f"fl-server-{snapshot.task_id}-{snapshot.instance}"),
            subscriptions=[str(self._topic), filter_for(Channel.CLIENT_STATUS, snapshot.task_id)],
            make_will=self._owner.will,
            options=self._options,
            observers=[self._look, self._owner.take, self._metrics.take],
            may_move=lambda: False,  # its life is one run
        )
        async with connection, self._owner.publishing(connection), asyncio.TaskGroup() as group:
            reading = group.create_task(self._read_clients(connection), name="client-statuses")
            publishing = group.create_task(self._metrics.run(connection), name="publish-metrics")
            self._started.set_result(None)
            await self._leaving.wait()
            reading.cancel()
            publishing.cancel()

    def _call(self, function: Callable[..., object], *args: object) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(function, *args)

    def _plan_update(self, is_urgent: bool) -> None:
        """Wake the bus's thread no more than needed: small rounds change phases a thousand times a second."""
        if is_urgent:
            self._call(self._update_now)
        elif not self._is_update_planned and self._thread.is_alive():
            self._is_update_planned = True
            self._call(self._update_soon)

    def _update_now(self) -> None:
        self._owner.update()

    def _update_soon(self) -> None:
        self._loop.call_later(_CALM_S, self._update_as_planned)

    def _update_as_planned(self) -> None:
        self._is_update_planned = False
        self._owner.update()

    async def _flush(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                if not self._was_connected:
                    await self._connection.wait_first_try()
                await self._metrics.wait_empty()
                return await self._owner.flush(timeout_s)
        except (TimeoutError, ConnectError):
            return False

    def _look(self, event: BusEvent) -> None:
        """See every event before the owner of the topic does."""
        match event:
            case Connected():
                self._was_connected = True
            case Received(topic, ServerStatus() as status, _) if topic == self._topic:
                self._look_at_server(status)

    def _look_at_server(self, status: ServerStatus) -> None:
        snapshot = self._snapshot
        if status.instance == snapshot.instance:
            return
        self._other_status = status
        if status.run_id == snapshot.run_id and status.launch > snapshot.launch:
            self._be_replaced(f"launch {status.launch} of this run has taken over")

    def _meet_conflicting_instance(self, conflicting_instance: ConflictingInstanceError) -> None:
        """A newer process publishes here; an earlier launch of this run does not count, whatever its clock."""
        other, snapshot = self._other_status, self._snapshot
        if other is None or other.run_id != snapshot.run_id or other.launch >= snapshot.launch:
            self._be_replaced(str(conflicting_instance))

    def _be_replaced(self, reason: str) -> None:
        if not self._is_replaced:
            self._is_replaced = True
            self._callbacks.on_replaced(reason)
            self._leaving.set()

    async def _read_clients(self, connection: Connection) -> None:
        async for event in connection.events():
            if isinstance(event, Received) and isinstance(event.message, ClientStatus):
                self._read_client(event.message)

    def _read_client(self, status: ClientStatus) -> None:
        """An attempt ends once: its outcome is true whenever it is read, a retained one too."""
        last = status.last_run
        if last is not None and last.run_id == self._snapshot.run_id and last.outcome is not Outcome.FINISHED:
            self._callbacks.on_client_ended(status.client_mac, last)
