"""The life of one retained status topic, for whoever owns it: client, FL server and manager use the same one.

One task publishes, one status at a time, and always the newest snapshot: the last status at the broker is the truth.
"""

import asyncio
import logging
import random
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol, assert_never

from fedops_mqtt.bus.address import BusOptions
from fedops_mqtt.bus.connection import Connection, Observer, Publication
from fedops_mqtt.bus.errors import (
    BusError,
    ConflictingInstanceError,
    EpochFileError,
    NotConnectedError,
    PublishRefusedError,
    PublishTimeoutError,
)
from fedops_mqtt.bus.events import BusEvent, Cleared, Connected, Disconnected, Malformed, Received
from fedops_mqtt.core import ownership
from fedops_mqtt.core.fencing import LAST_SEQ, Stamp
from fedops_mqtt.core.fleet import reports_offline
from fedops_mqtt.core.ownership import Adopt, Decision, Ignore, Ownership, Repair, SeenStatus, Yield, latest_epoch
from fedops_mqtt.protocol import ProtocolError, StatusMessage, Topic
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.files import write_atomically

logger = logging.getLogger(__name__)


class EpochStore(Protocol):
    """Keeps one number."""

    def load(self) -> int:
        """Return the last epoch saved, 0 when there is none."""
        ...

    def save(self, epoch: int) -> None:
        """Keep an epoch; it is safe when this returns."""
        ...


class MemoryEpochs:
    """For a process without a state folder: the clock and the retained topic have to do."""

    def __init__(self, epoch: int = 0) -> None:
        self._epoch = epoch

    def load(self) -> int:
        """Return the last epoch saved."""
        return self._epoch

    def save(self, epoch: int) -> None:
        """Keep an epoch until the process ends."""
        self._epoch = epoch


class EpochFile:
    """One number in a file, replaced atomically and synced; its folder is made when needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> int:
        """Return the last epoch saved; 0, with a warning, when the file is broken."""
        try:
            return _check_epoch(int(self.path.read_text(encoding="ascii")))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            logger.warning(
                "epoch file cannot be read, starting anew", extra={"path": str(self.path), "why": str(error)}
            )
            return 0

    def save(self, epoch: int) -> None:
        """Keep an epoch.

        Raises:
            EpochFileError: the file cannot be written; an epoch that is not kept must not be used.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, f"{epoch}\n".encode())
        except OSError as error:
            raise EpochFileError(str(self.path), str(error)) from error


def _check_epoch(epoch: int) -> int:
    if not 0 <= epoch <= latest_epoch(time.time_ns() // 1_000_000):
        raise ValueError("a number that is no epoch")
    return epoch


MakeStatus = Callable[[Stamp], StatusMessage]
MakeGoodbye = Callable[[Stamp, str], StatusMessage]

_NEVER = float("inf")

_GOODBYE_TIMEOUT_S = 3.0
"""For the last statuses together: a broker that hangs must not hold up an exit longer than a person waits."""


def new_instance(*, last_epoch: int = 0) -> str:
    """Return a name for this start of a process; newer ones sort after older ones, which decides a conflict.

    `last_epoch` as it was kept, where it was: a late status of the process before must not look newer.
    """
    return ownership.new_instance(time.time_ns() // 1_000_000, secrets.token_hex(6), last_epoch=last_epoch)


class StatusOwner:
    """Publishes a retained status: repeats it, repairs it, and publishes a last one at the end.

    Args:
        topic: the retained status topic.
        instance: this process, from `new_instance`; every status made here must carry it, and `heartbeat_s`.
        make_snapshot: returns the whole condition as it is now, with the stamp given.
        make_will: returns what the broker shall publish if this process dies, with the stamp given.
        make_goodbye: returns the last status, with the stamp and the reason (`shutdown` or `error`); None: none.
        epochs: keeps the epoch over restarts.
        heartbeat_s: the status is published again after this long without one, or up to a fifth earlier.
        on_conflict: called when a newer living instance is seen. Default: `ConflictingInstanceError` ends `publishing`.
    """

    def __init__(
        self,
        *,
        topic: Topic,
        instance: str,
        make_snapshot: MakeStatus,
        make_will: MakeStatus,
        make_goodbye: MakeGoodbye | None,
        epochs: EpochStore,
        heartbeat_s: float,
        on_conflict: Callable[[ConflictingInstanceError], None] | None = None,
    ) -> None:
        self.topic = topic
        self.instance = instance
        self._make_snapshot = make_snapshot
        self._make_will = make_will
        self._make_goodbye = make_goodbye
        self._epochs = epochs
        self.heartbeat_s = heartbeat_s
        self._beat_s = heartbeat_s
        self._on_conflict = on_conflict
        self._ownership = Ownership(instance=instance)
        self._last_epoch = 0
        # A connection takes an epoch on one thread while an epoch from before is kept on another.
        self._epoch_lock = threading.RLock()
        self._seq = 0
        self._is_up = False
        self._is_refused = False
        self._due_at = _NEVER
        self._published_at = -_NEVER
        self._adopted: int | None = None
        self._conflict: ConflictingInstanceError | None = None
        self._wake = asyncio.Event()
        self._acknowledged = asyncio.Event()

    @property
    def epoch(self) -> int:
        """The epoch of the present connection; 0 before the first."""
        return self._ownership.epoch

    def next_stamp(self) -> Stamp:
        """Return a fresh stamp, for another topic that the same owner writes (a run's status)."""
        self._seq += 1
        return Stamp(self.epoch, self._seq)

    def update(self) -> None:
        """Note that the snapshot has changed; it is published soon, or announced when the connection is back."""
        self._schedule(time.monotonic())

    async def flush(self, timeout_s: float) -> bool:
        """Wait until the newest snapshot is acknowledged; False when it was not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._acknowledged.wait()
        return self._acknowledged.is_set()

    async def will(self) -> Publication:
        """Take a new epoch, keep it, and return the last will for the connection that uses it."""
        epoch = await asyncio.to_thread(self._take_epoch)
        self._ownership = self._ownership.connected(epoch)
        self._seq = 0
        return Publication(topic=self.topic, message=self._make_will(Stamp(epoch, LAST_SEQ)))

    def take(self, event: BusEvent) -> None:
        """Take an event of the connection; give it to the connection as an observer."""
        match event:
            case Connected():
                self._is_up = True
                self._is_refused = False
                self._schedule(time.monotonic())
            case Disconnected():
                self._is_up = False
                self._due_at = _NEVER
            case Received(topic, message, is_retained) if topic == self.topic and isinstance(message, StatusMessage):
                self._judge(message, is_retained=is_retained)
            case Cleared(topic) if topic == self.topic:
                self._restore()
            case Malformed(topic_text, _) if topic_text == str(self.topic):
                self._restore()

    def _restore(self) -> None:
        """The own topic was cleared, or holds what cannot be read."""
        self._ownership, decision = ownership.judge_cleared(self._ownership, now=time.monotonic())
        self._carry_out(decision)

    @asynccontextmanager
    async def on_bus(
        self,
        url: str,
        *,
        client_id: str | None,
        subscriptions: Sequence[str] = (),
        options: BusOptions | None = None,
        counts_drops: bool = False,
        observers: Sequence[Observer] = (),
        may_move: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[Connection]:
        """Connect, announce, publish while the block runs, and publish a goodbye at its end. Arguments: `Connection`'s.

        Raises:
            ConflictingInstanceError: a newer process has this identity.
            BrokerUrlError: the URL or a TLS file cannot be used.
        """
        connection = Connection(
            url,
            client_id=client_id,
            subscriptions=[str(self.topic), *subscriptions],
            make_will=self.will,
            options=options,
            counts_drops=counts_drops,
            observers=[self.take, *observers],
            may_move=may_move,
        )
        async with connection, self.publishing(connection):
            yield connection

    @asynccontextmanager
    async def publishing(self, connection: Connection) -> AsyncIterator[None]:
        """Publish over a connection that was made with `will` and `take`, while the block runs.

        Raises:
            ConflictingInstanceError: a newer process has this identity; nothing more is published.
        """
        reason = "error"
        try:
            async with alongside(self._publish_when_due(connection), name=f"publish-{self.topic.channel.name.lower()}"):
                yield
            reason = "shutdown"
        except asyncio.CancelledError:
            reason = "shutdown"
            raise
        finally:
            if self._conflict is None:
                await self._publish_goodbye(connection, reason)

    async def _publish_when_due(self, connection: Connection) -> None:
        while True:
            while (wait_s := self._next_status_at() - time.monotonic()) > 0:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if wait_s == _NEVER else wait_s):
                        await self._wake.wait()
            if self._conflict is not None:
                raise self._conflict
            if self._adopted is not None:
                await self._stand_above(connection)
            else:
                await self._publish(connection)

    def _next_status_at(self) -> float:
        if self._conflict is not None or self._adopted is not None:
            return -_NEVER
        if not self._is_up:
            return _NEVER
        return min(self._due_at, self._published_at + self._beat_s)

    async def _publish(self, connection: Connection) -> None:
        self._due_at = _NEVER
        self._published_at = time.monotonic()
        self._beat_s = ownership.next_beat_s(self.heartbeat_s, random.random())  # noqa: S311 - no secret
        try:
            await connection.publish(self.topic, self._make_snapshot(self.next_stamp()))
        except NotConnectedError:
            # An ended session refuses without waiting: the loop must run, or it never gets to report that it has ended.
            await asyncio.sleep(0)
            self._is_up = self._is_up and connection.is_connected
            self._due_at = min(self._due_at, time.monotonic())
        except PublishTimeoutError as error:
            logger.warning("status was not acknowledged, publishing it again", extra={"problem": str(error)})
            self._due_at = min(self._due_at, time.monotonic())
        except (PublishRefusedError, ProtocolError) as error:
            # The broker does not take the status, or no message holds it: log it once; each heartbeat tries again
            if not self._is_refused:
                logger.error("cannot publish our status", extra={"problem": str(error)})
            self._is_refused = True
        else:
            self._is_refused = False
            if self._due_at == _NEVER:
                self._acknowledged.set()

    async def _stand_above(self, connection: Connection) -> None:
        epoch, self._adopted = self._adopted, None
        self._is_up = False
        if epoch is not None:
            await asyncio.to_thread(self._keep_epoch, epoch)
            logger.warning("took over a higher epoch from before", extra={"topic": str(self.topic), "epoch": epoch})
            await connection.reconnect("our own topic holds a higher epoch from before")

    async def _publish_goodbye(self, connection: Connection, reason: str) -> None:
        """Publish what was left unpublished, then the last status; a broker that is away must not hold up the exit."""
        if self._make_goodbye is None or not connection.is_connected:
            return
        try:
            async with asyncio.timeout(_GOODBYE_TIMEOUT_S):
                if self._due_at != _NEVER:
                    await connection.publish(self.topic, self._make_snapshot(self.next_stamp()))
                await connection.publish(self.topic, self._make_goodbye(self.next_stamp(), reason))
        except (BusError, ProtocolError, TimeoutError) as error:
            logger.warning("left without a goodbye", extra={"topic": str(self.topic), "problem": str(error)})

    def _take_epoch(self) -> int:
        with self._epoch_lock:
            last = max(self._epochs.load(), self._last_epoch)
            epoch = ownership.next_epoch(last, time.time_ns() // 1_000_000)
            self._keep_epoch(epoch)
            return epoch

    def _keep_epoch(self, epoch: int) -> None:
        """A full disk must not silence a device: without a kept epoch the clock and the retained status have to do."""
        with self._epoch_lock:
            self._last_epoch = max(self._last_epoch, epoch)
            try:
                self._epochs.save(self._last_epoch)
            except EpochFileError as error:
                logger.error("the epoch is not kept; going on", extra={"problem": str(error)})

    def _judge(self, message: StatusMessage, *, is_retained: bool) -> None:
        seen = SeenStatus(
            instance=message.instance,
            epoch=message.epoch,
            is_out=reports_offline(message),
            is_retained=is_retained,
            is_ahead=message.seq > self._seq,
        )
        self._ownership, decision = ownership.judge(self._ownership, seen, now=time.monotonic())
        self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Ignore():
                pass
            case Repair(at):
                logger.warning("repairing our retained status", extra={"topic": str(self.topic)})
                self._schedule(at)
            case Adopt(epoch):
                self._adopted = epoch
                self._wake.set()
            case Yield(conflicting_instance):
                self._yield_to(ConflictingInstanceError(str(self.topic), self.instance, conflicting_instance))
            case _:
                assert_never(decision)

    def _yield_to(self, conflicting_instance: ConflictingInstanceError) -> None:
        logger.error("a newer process has our identity", extra={"problem": str(conflicting_instance)})
        if self._on_conflict is not None:
            self._on_conflict(conflicting_instance)
            return
        self._conflict = conflicting_instance
        self._wake.set()

    def _schedule(self, at: float) -> None:
        self._acknowledged.clear()
        self._due_at = min(self._due_at, at)
        self._wake.set()
