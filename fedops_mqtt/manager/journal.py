"""What the manager must not forget: runs, events, numbers, launches and terms, in a database.

Written before anything is done about it: a trigger that is not in the journal was never fired. Every method is one
short transaction and blocks; the manager calls them on a thread of their own (`Journal.call`). What people read goes
through `Journal.reader`.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar, cast

from sqlalchemy import Connection, Engine, Row, case, delete, func, insert, make_url, select, text, update
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from fedops_mqtt.core.run import Run
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.database import is_away, migrate, open_engine
from fedops_mqtt.manager.errors import JournalUrlError
from fedops_mqtt.manager.journal_reader import NUM_READERS, JournalReader, members_of
from fedops_mqtt.manager.lease import fence
from fedops_mqtt.manager.run_record import changed_members, count_members, dump_member, dump_run, load_run
from fedops_mqtt.manager.tasks import TaskConfig, read_stored_task
from fedops_mqtt.runtime.extras import how_to_install

P = ParamSpec("P")
T = TypeVar("T")

AWAY_POLL_S = 0.5
"""Between two tries to reach a database that is away."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEvent:
    """Something that happened, at the manager's clock."""

    at: float
    kind: str
    run_id: str | None = None
    task_id: str | None = None
    client_mac: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournaledRun:
    """A run and what only the manager stores of it."""

    run: Run
    secret: bytes = field(repr=False)
    task: TaskConfig | None = field(default=None, repr=False)
    """The task as it was when the run began; None in a journal of a program that did not keep it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch of an FL server; `pid` is None until its process is there."""

    run_id: str
    launch: int
    log_path: str
    secret_file: str
    pid: int | None = None
    process_key: str | None = None
    exit_reason: str | None = None
    host: str | None = None
    """The process's host (`runtime.machine.host_id`); from older programs its name, or None: this host."""


@dataclass(kw_only=True)
class Batch:
    """What one turn of the manager has to write, all or nothing."""

    runs: dict[str, tuple[Run | None, Run]] = field(default_factory=dict)
    """By run id: as it is in the journal, as it is now."""
    events: list[JournalEvent] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    client_metrics: list[dict[str, Any]] = field(default_factory=list)
    written: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    """Set once it is in the database."""

    def __bool__(self) -> bool:
        return bool(self.runs or self.events or self.rounds or self.client_metrics)


class Journal:
    """The database, as a context manager. Only `call` may be used from the event loop.

    Raises:
        JournalUrlError, JournalVersionError: the database cannot be used.
        SQLAlchemyError: from every method, when it cannot be read or written.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
            self._engine = open_engine(self._url, num_connections=NUM_READERS + 2)  # the writer and the lease
        except ImportError as error:
            raise JournalUrlError(how_to_install(error)) from error
        except ArgumentError as error:
            hint = "an SQLAlchemy URL is wanted, such as sqlite:////var/lib/x/manager.db"
            raise JournalUrlError(f"{error}; {hint}") from error
        except ValueError:  # a port that is no number, which may be a part of a password
            raise JournalUrlError("its port is not a number") from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self.reader = JournalReader(self._engine)
        self._term: int | None = None
        self._may_act: Callable[[], bool] = lambda: True
        self._num_written = 0
        self._is_closing = threading.Event()

    def __enter__(self) -> Self:
        try:
            with self._engine.begin() as connection:
                migrate(connection, self.name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing.set()
        self.reader.close()
        self._thread.shutdown(wait=True)
        self._engine.dispose()

    @property
    def name(self) -> str:
        """Its URL without the password."""
        return self._url.render_as_string()

    @property
    def url(self) -> str:
        """Its URL with the password."""
        return self._url.render_as_string(hide_password=False)

    @property
    def file(self) -> Path | None:
        """The SQLite file, if it is one."""
        is_file = self._url.get_backend_name() == "sqlite" and self._url.database not in (None, "", ":memory:")
        return Path(self._url.database or "") if is_file else None

    @property
    def engine(self) -> Engine:
        """For the lease, which has a life of its own."""
        return self._engine

    async def call(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one of the methods on the journal's thread; calls happen in the order in which they were made.

        While the database is away it waits, and a leader that is not sure to lead any more waits until it is: the
        caller that goes on after this may act on what was written.
        """
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._thread, lambda: self._insist(method, *args, **kwargs))
        done.add_done_callback(_read_error)  # a cancelled caller does not read it
        result = await asyncio.shield(done)
        while not self._may_act():  # noqa: ASYNC110 - time decides, and another thread
            await asyncio.sleep(AWAY_POLL_S / 5)
        return result

    def wait_for(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`call` for another thread than the event loop's; it does not ask whether this manager leads."""
        return self._thread.submit(self._insist, method, *args, **kwargs).result()

    def _insist(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a method again and again until the database is there for it, or the journal is closed; this blocks."""
        has_warned = False
        while True:
            try:
                return method(*args, **kwargs)
            except _AlreadyWrittenError:
                return cast("T", None)  # as every write
            except DBAPIError as error:
                if not is_away(error) or self._is_closing.wait(AWAY_POLL_S):
                    raise
                if not has_warned:
                    logger.warning("the database is not available, waiting for it", extra={"problem": str(error.orig)})
                    has_warned = True

    def lead(self, term: int, may_act: Callable[[], bool] = lambda: True) -> None:
        """From now on write only as the leader of this term: one that was frozen finds out before it acts.

        `LeaseLostError` is raised by `add_run`, `write` and `add_launch` once another manager leads. `may_act` returns
        whether no other manager can lead yet.
        """
        self._term, self._may_act, self._num_written = term, may_act, 0

    # Runs

    def add_run(self, journaled: JournaledRun) -> None:
        """Write down a new run, its secret, and its task as it is at this moment."""
        run, task = journaled.run, journaled.task
        row = {"task_id": run.spec.task_id, "secret": journaled.secret.hex(), "created_at": run.created_at}
        row["task_config"] = task.model_dump_json(exclude_unset=True) if task else None
        row["app_digest"] = run.spec.app.digest if run.spec.app else None
        with self.begin() as connection:
            connection.execute(insert(tables.runs).values(run_id=run.run_id, is_archived=False, **row, **_facts(run)))
            _write_members(connection, None, run)
            _add_events(connection, [_created(run)])

    def write(self, batch: Batch) -> None:
        """Write one turn of the manager; what came of a run that was deleted meanwhile goes with it."""
        with self.begin() as connection:
            for before, run in batch.runs.values():
                this = update(tables.runs).where(tables.runs.c.run_id == run.run_id)
                if connection.execute(this.values(**_facts(run))).rowcount:
                    _write_members(connection, before, run)
            _add_events(connection, batch.events)
            run_ids = {row["run_id"] for row in batch.rounds}
            known = set(
                connection.execute(select(tables.runs.c.run_id).where(tables.runs.c.run_id.in_(run_ids))).scalars()
            )
            for row in batch.rounds:
                if row["run_id"] in known:
                    _replace(connection, row)
            if batch.client_metrics:
                connection.execute(insert(tables.client_metrics), batch.client_metrics)

    def open_runs(self) -> list[JournaledRun]:
        """Return every run that is not archived, oldest first; one that cannot be read is left out."""
        table = tables.runs
        query = select(table).where(table.c.is_archived.is_(False)).order_by(table.c.created_at)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
            members = members_of(connection, [row.run_id for row in rows])
        found = (self.reader.readable(row.run_id, _journaled, row, members.get(row.run_id, {})) for row in rows)
        return [journaled for journaled in found if journaled is not None]

    def archive(self, run_id: str) -> None:
        """Note that a run has left the bus and is history."""
        with self._engine.begin() as connection:
            connection.execute(update(tables.runs).where(tables.runs.c.run_id == run_id).values(is_archived=True))

    # History

    def prune(self, *, runs_before: float, events_before: float) -> list[str]:
        """Delete archived runs that ended, and events that came, before these times; return the runs' ids."""
        old = select(tables.runs.c.run_id).where(tables.runs.c.is_archived, tables.runs.c.ended_at < runs_before)
        run_ids = [row[0] for row in self.reader.rows(old)]
        with self._engine.begin() as connection:
            for run_id in run_ids:
                _delete_run(connection, run_id)
            for table in (tables.events, tables.client_metrics):
                connection.execute(delete(table).where(table.c.at < events_before))
        return run_ids

    def last_time(self) -> float:
        """Return the latest time that was written down, s; 0 for a new journal."""
        latest = (select(func.max(tables.events.c.at)), select(func.max(tables.runs.c.created_at)))
        return max(float(self.reader.rows(query)[0][0] or 0.0) for query in latest)

    def boot_time(self, boot: str) -> float | None:
        """Return when a host was booted by the clock of its last leader in that boot, s; None: it had none."""
        rows = self.reader.rows(select(tables.boots.c.booted_at).where(tables.boots.c.boot == boot))
        return float(rows[0][0]) if rows else None

    def note_boot_time(self, boot: str, booted_at: float) -> None:
        """Note the clock of a leader: when its host was booted by it, s."""
        with self._engine.begin() as connection:
            connection.execute(delete(tables.boots).where(tables.boots.c.boot == boot))
            connection.execute(insert(tables.boots).values(boot=boot, booted_at=booted_at))

    # Launches

    def add_launch(self, launch: Launch) -> None:
        """Note that a server's process is about to be started."""
        row = {"log_path": launch.log_path, "secret_file": launch.secret_file, "host": launch.host}
        with self.begin() as connection:
            connection.execute(_of_launch(delete(tables.launches), launch.run_id, launch.launch))
            connection.execute(insert(tables.launches).values(run_id=launch.run_id, launch=launch.launch, **row))

    def note_process(self, run_id: str, launch: int, *, pid: int, process_key: str | None) -> None:
        """Note which process a launch became."""
        values = {"pid": pid, "process_key": process_key}
        with self._engine.begin() as connection:
            connection.execute(_of_launch(update(tables.launches), run_id, launch).values(**values))

    def note_exit(self, run_id: str, launch: int, reason: str) -> None:
        """Note how a launch ended."""
        with self._engine.begin() as connection:
            connection.execute(_of_launch(update(tables.launches), run_id, launch).values(exit_reason=reason))

    def list_launches(self, run_id: str) -> list[Launch]:
        """Return a run's launches in order."""
        query = select(tables.launches).where(tables.launches.c.run_id == run_id).order_by(tables.launches.c.launch)
        return [Launch(**row) for row in self.reader.dicts(query)]

    # Epochs

    def read_epoch(self, owner: str) -> int:
        """Return the last epoch under which an owner published; 0 for a new one."""
        rows = self.reader.rows(select(tables.epochs.c.epoch).where(tables.epochs.c.owner == owner))
        return int(rows[0][0]) if rows else 0

    def write_epoch(self, owner: str, epoch: int) -> None:
        """Write down the epoch of a connection before it is made."""
        with self._engine.begin() as connection:
            # Two writers are possible, a leader that was frozen and the next one: neither ends by the other's row.
            if not _update_epoch(connection, owner=owner, epoch=epoch):
                try:
                    with connection.begin_nested():
                        connection.execute(insert(tables.epochs).values(owner=owner, epoch=epoch))
                except IntegrityError:
                    _update_epoch(connection, owner=owner, epoch=epoch)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction of the leader; `_insist` skips one that was committed as its connection broke."""
        number = self._num_written + 1
        with self._engine.begin() as connection:
            if self._term is not None and not fence(connection, self._term, number):
                self._num_written = number
                raise _AlreadyWrittenError
            yield connection
        self._num_written = number


class _AlreadyWrittenError(Exception):
    """The last try of a write was committed, although its answer was lost."""


def _read_error(done: asyncio.Future[Any]) -> None:
    """Read the error: asyncio prints one that was never read (Python 3.11 Future.__del__)."""
    if not done.cancelled():
        done.exception()


def _journaled(row: Row[Any], members: Mapping[str, str]) -> JournaledRun:
    task, problem = (None, None) if row.task_config is None else read_stored_task(row.task_config)
    if problem is not None:  # of a program with other rules: the run is supervised with what can be read
        facts = {"run_id": row.run_id, "problem": problem}
        logger.error("the task of a run in the journal cannot be read as a whole", extra=facts)
    return JournaledRun(run=load_run(row.state, members), secret=bytes.fromhex(row.secret), task=task)


def _facts(run: Run) -> dict[str, Any]:
    outcome = run.outcome.value if run.outcome else None
    counts = count_members(run)
    facts = {"ended_at": run.ended_at, "outcome": outcome, "reason": run.reason, "member_counts": counts}
    return {"state": dump_run(run), **facts}


def _created(run: Run) -> JournalEvent:
    return JournalEvent(at=run.created_at, kind="RunCreated", run_id=run.run_id, task_id=run.spec.task_id)


def _write_members(connection: Connection, before: Run | None, run: Run) -> None:
    changed = changed_members(before, run)
    if not changed:
        return
    known = set(before.members) if before else set()
    rows = [{"client_mac": mac, "state": dump_member(member)} for mac, member in changed.items()]
    fresh = [{"run_id": run.run_id, **row} for row in rows if row["client_mac"] not in known]
    later = [{"mac": row["client_mac"], "new": row["state"]} for row in rows if row["client_mac"] in known]
    table = tables.members
    if fresh:
        connection.execute(insert(table), fresh)
    if later:
        this = (table.c.run_id == run.run_id) & (table.c.client_mac == text(":mac"))
        connection.execute(update(table).where(this).values(state=text(":new")), later)


def _add_events(connection: Connection, happened: Iterable[JournalEvent]) -> None:
    rows = [
        {
            "at": each.at,
            "kind": each.kind,
            "run_id": each.run_id,
            "task_id": each.task_id,
            "client_mac": each.client_mac,
            "detail": dict(each.detail),
        }
        for each in happened
    ]
    if rows:
        connection.execute(insert(tables.events), rows)


def _update_epoch(connection: Connection, *, owner: str, epoch: int) -> bool:
    """Raise an owner's epoch, never lower it; return whether it has a row."""
    table = tables.epochs
    higher = case((table.c.epoch < epoch, epoch), else_=table.c.epoch)
    return bool(connection.execute(update(table).where(table.c.owner == owner).values(epoch=higher)).rowcount)


def _replace(connection: Connection, row: Mapping[str, Any]) -> None:
    """Write one round; a message that was delivered twice is one row."""
    table = tables.rounds
    key = (table.c.run_id == row["run_id"]) & (table.c.launch == row["launch"]) & (table.c.round == row["round"])
    connection.execute(delete(table).where(key))
    connection.execute(insert(table).values(**row))


def _delete_run(connection: Connection, run_id: str) -> None:
    for table in (tables.events, tables.client_metrics, tables.rounds, tables.members, tables.launches, tables.runs):
        connection.execute(delete(table).where(table.c.run_id == run_id))


def _of_launch(statement: Any, run_id: str, launch: int) -> Any:
    return statement.where((tables.launches.c.run_id == run_id) & (tables.launches.c.launch == launch))
