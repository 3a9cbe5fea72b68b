"""Who leads: at most one manager acts on a database, and each that begins to lead takes a higher `term`.

With SQLite a lock on a file beside the database decides (the kernel frees it when its holder dies); with other
databases a row with a time limit, renewed at a third of it. A manager without the lease only waits.
"""

import asyncio
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self, TypeVar

from sqlalchemy import Connection, Engine, insert, select, update

from fedops_mqtt.core.term import next_term
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.errors import LeaseLostError

logger = logging.getLogger(__name__)

STANDBY_POLL_S = 0.5
"""How often a manager on standby looks whether the lease is free."""

ROW_LEASE_S = 15.0
"""A leader on another machine that says nothing for this long has lost its lease."""

_NAME = "manager"

T = TypeVar("T")


class StartCall(Protocol):
    """Runs what blocks on a thread of its own and waits for it."""

    async def __call__(self, method: Callable[[], T], /) -> T:
        """Return what the method returned."""
        ...


class Lease(Protocol):
    """The right to act; `try_take` and `renew` block for one short transaction."""

    def try_take(self) -> int | None:
        """Return the new term, or None while another manager leads."""
        ...

    def renew(self) -> None:
        """Keep the lease.

        Raises:
            LeaseLostError: another manager has it.
        """
        ...

    def release(self) -> None:
        """Give the lease to whoever waits for it."""
        ...

    def holder(self) -> str:
        """Return who leads, for people."""
        ...


async def wait_for_lease(
    lease: Lease, *, call: StartCall, stop: asyncio.Event, say: Callable[[str], None]
) -> int | None:
    """Return the term once this manager leads; None when it is stopped before.

    It is never cancelled instead of stopped: a lease that was taken on `call`'s thread while nobody waits for it any
    more would be held by nobody.

    Args:
        lease: what is waited for.
        call: runs a method that blocks outside the event loop (`Journal.call`).
        stop: ends the wait.
        say: told once, when there is somebody to wait for.
    """
    is_waiting = False
    while (term := await call(lease.try_take)) is None and not stop.is_set():
        if not is_waiting:
            is_waiting = True
            leader = await call(lease.holder)
            logger.info("on standby, another manager leads", extra={"leader": leader})
            say(f"on standby: another manager leads ({leader}); this one takes over when it goes")
        with suppress(TimeoutError):
            async with asyncio.timeout(STANDBY_POLL_S):
                await stop.wait()
    if term is not None:
        logger.info("leading", extra={"term": term})
    return term


class FileLease:
    """A lock on a file; held as long as this process lives, so there is nothing to renew."""

    def __init__(self, path: Path, engine: Engine, me: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._engine = engine
        self._me = me
        self._clock = clock
        self._fd: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

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
                term = _take_row(connection, self._me, now=self._clock(), held_until=0.0)
        finally:
            if term is None:
                self.release()  # or the next try, on a descriptor of its own, would find the lock taken: by us
        return term

    def renew(self) -> None:
        """Nothing: the kernel keeps the lock."""

    def release(self) -> None:
        """Free the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def holder(self) -> str:
        """Return what the holder wrote into the file."""
        return self._path.read_text(encoding="utf-8", errors="replace") or "unknown"


class RowLease:
    """A row in the database, for managers on several machines; their wall clocks must agree to a few seconds."""

    def __init__(self, engine: Engine, me: str, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._me = me
        self._clock = clock
        self._term: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def try_take(self) -> int | None:
        """Return the new term if the last holder let go or let its time pass."""
        now = self._clock()
        with self._engine.begin() as connection:
            row = connection.execute(select(tables.lease).where(tables.lease.c.name == _NAME)).first()
            if row is not None and row.held_until > now:
                return None
            self._term = _take_row(connection, self._me, now=now, held_until=now + ROW_LEASE_S)
            return self._term

    def renew(self) -> None:
        """Hold it for another `ROW_LEASE_S`.

        Raises:
            LeaseLostError: another manager took it.
        """
        if not self._set_until(self._clock() + ROW_LEASE_S):
            raise LeaseLostError(self.holder())

    def release(self) -> None:
        """Let the next one take it at once."""
        if self._term is not None:
            self._set_until(0.0)
            self._term = None

    def holder(self) -> str:
        """Return who leads."""
        with self._engine.connect() as connection:
            found = connection.execute(select(tables.lease.c.holder).where(tables.lease.c.name == _NAME)).scalar()
        return str(found or "nobody")

    def _set_until(self, until: float) -> bool:
        mine = (
            (tables.lease.c.name == _NAME) & (tables.lease.c.term == self._term) & (tables.lease.c.holder == self._me)
        )
        with self._engine.begin() as connection:
            return connection.execute(update(tables.lease).where(mine).values(held_until=until)).rowcount == 1


def _take_row(connection: Connection, me: str, *, now: float, held_until: float) -> int | None:
    """Take the row with the next term; None when another one was faster."""
    last = connection.execute(select(tables.lease.c.term).where(tables.lease.c.name == _NAME)).scalar()
    term = next_term(int(last or 0), int(now))
    values = {"term": term, "holder": me, "held_until": held_until}
    if last is None:
        connection.execute(insert(tables.lease).values(name=_NAME, **values))
        return term
    this = (tables.lease.c.name == _NAME) & (tables.lease.c.term == last)
    taken = connection.execute(update(tables.lease).where(this).values(**values)).rowcount
    return term if taken == 1 else None


def check_term(connection: Connection, term: int) -> None:
    """Check, within a transaction that writes, that nobody has taken the lease since.

    Raises:
        LeaseLostError: another manager has it.
    """
    row = select(tables.lease.c.term, tables.lease.c.holder).where(tables.lease.c.name == _NAME)
    found = connection.execute(row.with_for_update(read=True)).first()
    if found is not None and found.term != term:
        raise LeaseLostError(found.holder)
