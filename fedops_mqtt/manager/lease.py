"""The lease: at most one manager acts on a database, and each that begins to lead takes a higher `term`.

With SQLite the lease is a lock on a file beside the database, which the kernel frees when its holder dies. With a
database server it is a row that its holder renews, and no two clocks are compared: a standby manager takes the row once
it has read it unchanged for `ROW_LEASE_S` by its own clock, and the leader gives up after the same time, counted from
before its last renewal. The standby counts no time in which the database does not answer or its own host stands still.
"""

import asyncio
import errno
import fcntl
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from sqlalchemy import Connection, Engine, Row, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from fedops_mqtt.core.fencing import next_term
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.database import is_away
from fedops_mqtt.manager.errors import LeaseLostError

logger = logging.getLogger(__name__)

STANDBY_POLL_S = 0.25
"""How often a manager on standby looks whether the lease is free."""

ROW_LEASE_S = 4.0
"""A leader on another machine that renews nothing for this long has lost its lease: four renewals are missing."""

RENEW_S = 1.0
"""Between two renewals; they have a thread of their own: neither the event loop nor a long write delays them."""

_LONGEST_LOOK_S = 2 * STANDBY_POLL_S
"""Of the time between two looks no more counts: the host of the standby manager may be what stood still."""

_MARGIN_S = 0.25
"""A leader stops acting so long before its lease can be taken; two clocks may run at different speeds."""

_NAME = "manager"

T = TypeVar("T")


class ThreadCall(Protocol):
    """Runs what blocks on a thread of its own and waits for it."""

    async def __call__(self, method: Callable[[], T], /) -> T:
        """Return what the method returned."""
        ...


class Lease(ABC):
    """The right to act, as a context manager that releases it; all but `hold` block for one short transaction at most.

    By default it needs no renewal: the kernel keeps a lock as long as its process lives.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @abstractmethod
    def try_take(self) -> int | None:
        """Return the new term, or None while another manager leads."""

    def hold(self, stop: threading.Event) -> None:  # noqa: B027 - a lock on a file needs none
        """Keep the lease until `stop` is set.

        Raises:
            LeaseLostError: another manager has it.
        """

    def renew(self) -> None:  # noqa: B027 - as `hold`
        """Keep the lease a while longer.

        Raises:
            LeaseLostError: another manager has it.
        """

    def may_act(self) -> bool:
        """Return whether no other manager can lead at this moment."""
        return True

    @abstractmethod
    def release(self) -> None:
        """Release the lease for the next manager."""

    @abstractmethod
    def holder(self) -> str:
        """Return the name of the manager that leads, for people."""


async def wait_for_lease(
    lease: Lease, *, call: ThreadCall, stop: asyncio.Event, print_line: Callable[[str], None]
) -> int | None:
    """Return the term once this manager leads; None when it is stopped before.

    It is never cancelled instead of stopped: a lease that `call`'s thread takes after the waiting task was cancelled
    would be held, and no manager would lead.

    Args:
        lease: what is waited for.
        call: runs a method that blocks outside the event loop (`Journal.call`).
        stop: ends the wait.
        print_line: called once, when another manager leads.
    """
    is_waiting = False
    while (term := await call(lease.try_take)) is None and not stop.is_set():
        if not is_waiting:
            is_waiting = True
            leader = await call(lease.holder)
            logger.info("on standby, another manager leads", extra={"leader": leader})
            print_line(f"on standby: another manager leads ({leader}); this one takes over when it goes")
        with suppress(TimeoutError):
            async with asyncio.timeout(STANDBY_POLL_S):
                await stop.wait()
    if term is not None:
        logger.info("leading", extra={"term": term})
    return term


async def hold_lease(lease: Lease) -> None:
    """Keep the lease on a thread of its own, which what holds up the loop does not delay, until this is cancelled.

    It returns once the thread has ended: a renewal after the release would keep the next manager out.

    Raises:
        LeaseLostError: another manager has it.
    """
    stop, threads = threading.Event(), ThreadPoolExecutor(1, thread_name_prefix="lease")
    holding = asyncio.get_running_loop().run_in_executor(threads, lease.hold, stop)
    try:
        await asyncio.shield(holding)
    finally:
        stop.set()
        threads.shutdown(wait=False)
        await asyncio.wait([holding])


class FileLease(Lease):
    """A lock on a file; held as long as this process lives, so there is nothing to renew."""

    def __init__(self, path: Path, engine: Engine, me: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._engine = engine
        self._me = me
        self._clock = clock
        self._fd: int | None = None

    def try_take(self) -> int | None:
        """Return the new term, or None while another process holds the lock."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise
        self._fd = fd
        term = None
        try:
            os.truncate(fd, 0)
            os.write(fd, self._me.encode())
            with self._engine.begin() as connection:
                seen = connection.execute(select(tables.lease).where(tables.lease.c.name == _NAME)).first()
                term = _take_row(connection, self._me, now=self._clock(), held_until=0.0, seen=seen)
        finally:
            if term is None:
                self.release()  # or the next try, on a descriptor of its own, would find the lock taken: by us
        return term

    def release(self) -> None:
        """Free the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def holder(self) -> str:
        """Return what the holder wrote into the file."""
        return self._path.read_text(encoding="utf-8", errors="replace") or "unknown"


class RowLease(Lease):
    """A row in the database, for managers on several machines.

    Args:
        engine: of the database.
        me: this manager's name, for people.
        clock: seconds since 1970; terms begin with it, nothing else is decided by it.
        monotonic: seconds that never step, by which the lease is counted.
    """

    def __init__(
        self,
        engine: Engine,
        me: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._me = me
        self._clock = clock
        self._monotonic = monotonic
        self._term: int | None = None
        self._renewed_at = float("-inf")
        self._is_away = False
        self._seen: Row[Any] | None = None
        self._seen_for_s = 0.0
        self._looked_at = 0.0

    def try_take(self) -> int | None:
        """Return the new term if the last holder released the lease or did not renew it for `ROW_LEASE_S`."""
        try:
            term = self._try_take()
        except DBAPIError as error:
            self._note_outage("the database is not available, no manager can lead", error)
            self._seen = None  # no manager can renew now, so none is late
            return None
        self._note_answer()
        return term

    def _try_take(self) -> int | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(tables.lease).where(tables.lease.c.name == _NAME)).first()
        now = self._monotonic()
        if row is not None and row.held_until:
            is_same = self._seen is not None and (row.term, row.held_until) == (self._seen.term, self._seen.held_until)
            self._seen_for_s = self._seen_for_s + min(now - self._looked_at, _LONGEST_LOOK_S) if is_same else 0.0
            self._seen, self._looked_at = row, now
            if self._seen_for_s < ROW_LEASE_S:
                return None
        began = self._monotonic()
        with self._engine.begin() as connection:
            self._term = _take_row(connection, self._me, now=self._clock(), held_until=self._until(), seen=row)
        self._renewed_at = began
        return self._term

    def hold(self, stop: threading.Event) -> None:
        """Renew it every `RENEW_S` until `stop` is set; a database that is away is waited for.

        Raises:
            LeaseLostError: another manager took it.
        """
        while not stop.wait(RENEW_S):
            try:
                self.renew()
            except DBAPIError as error:
                self._note_outage("the lease is not renewed, no database", error)
            else:
                self._note_answer()

    def renew(self) -> None:
        """Hold it for another `ROW_LEASE_S`.

        Raises:
            LeaseLostError: another manager took it.
        """
        began = self._monotonic()
        if not self._set_until(self._until()):
            raise LeaseLostError(self.holder())
        self._renewed_at = began

    def may_act(self) -> bool:
        """Return whether the last renewal is so recent that no other manager can have the lease."""
        return self._monotonic() - self._renewed_at < ROW_LEASE_S - _MARGIN_S

    def release(self) -> None:
        """Let the next one take it at once."""
        if self._term is not None:
            try:
                self._set_until(0.0)
            except SQLAlchemyError as error:
                logger.warning("the lease is not given back, it ends by itself", extra={"problem": str(error)})
            self._term = None

    def holder(self) -> str:
        """Return the name of the manager that leads."""
        with self._engine.connect() as connection:
            found = connection.execute(select(tables.lease.c.holder).where(tables.lease.c.name == _NAME)).scalar()
        return str(found or "nobody")

    def _note_outage(self, sentence: str, error: DBAPIError) -> None:
        """Log the first failure of an outage; raise every other error."""
        if not is_away(error):
            raise error
        if not self._is_away:
            logger.warning(sentence, extra={"problem": str(error.orig)})
        self._is_away = True

    def _note_answer(self) -> None:
        if self._is_away:
            logger.info("the database answers again")
        self._is_away = False

    def _until(self) -> float:
        """Return a value that no earlier renewal had: the time when the lease ends."""
        return self._clock() + ROW_LEASE_S

    def _set_until(self, until: float) -> bool:
        mine = (
            (tables.lease.c.name == _NAME) & (tables.lease.c.term == self._term) & (tables.lease.c.holder == self._me)
        )
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":  # nothing is lost with a renewal, and a slow disk delays none
                connection.execute(text("SET LOCAL synchronous_commit = off"))
            return connection.execute(update(tables.lease).where(mine).values(held_until=until)).rowcount == 1


def _take_row(connection: Connection, me: str, *, now: float, held_until: float, seen: Row[Any] | None) -> int | None:
    """Take the row, if it still is as it was seen, with the next term; None when another one was faster."""
    term = next_term(int(seen.term if seen else 0), int(now))
    values = {"term": term, "holder": me, "held_until": held_until, "last_write": 0}
    if seen is None:
        try:
            with connection.begin_nested():
                connection.execute(insert(tables.lease).values(name=_NAME, **values))
        except IntegrityError:  # another manager of a new database has written the row since
            return None
        return term
    table = tables.lease
    this = (table.c.name == _NAME) & (table.c.term == seen.term) & (table.c.held_until == seen.held_until)
    taken = connection.execute(update(table).where(this).values(**values)).rowcount
    return term if taken == 1 else None


def fence(connection: Connection, term: int, number: int) -> bool:
    """Count a write within its transaction; False where one of this number was committed before.

    Raises:
        LeaseLostError: another manager has the lease.
    """
    table = tables.lease
    mine = (table.c.name == _NAME) & (table.c.term == term)
    if connection.execute(update(table).where(mine, table.c.last_write < number).values(last_write=number)).rowcount:
        return True
    found = connection.execute(select(table.c.term, table.c.holder).where(table.c.name == _NAME)).first()
    if found is not None and found.term != term:
        raise LeaseLostError(found.holder)
    return found is None
