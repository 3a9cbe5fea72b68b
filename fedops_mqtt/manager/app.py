"""A manager's whole life as a process, from the settings to the exit status: standby, leading, leaving.

SIGTERM, SIGHUP and SIGINT end it in order; its runs and their servers go on unless `ends_servers` is set.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from fedops_mqtt.bus import BrokerUrlError, BusError, ConflictingInstanceError, EpochFileError
from fedops_mqtt.manager.api.http import access_rules, listen, standing_by
from fedops_mqtt.manager.errors import (
    ApiAddressError,
    JournalUnusableError,
    JournalUrlError,
    JournalVersionError,
    LeaseLostError,
    ManagerError,
    StateDirError,
    TasksFileError,
)
from fedops_mqtt.manager.journal import Journal
from fedops_mqtt.manager.leader import Front, leading
from fedops_mqtt.manager.lease import FileLease, Lease, RowLease, hold_lease, wait_for_lease
from fedops_mqtt.manager.tasks import Tasks
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.http_access import AccessRules
from fedops_mqtt.runtime.http_server import url_of
from fedops_mqtt.runtime.machine import AccessConfigError, host_name
from fedops_mqtt.runtime.settings import ManagerSettings
from fedops_mqtt.runtime.systemd import ExitCode, exit_code_of_disk, on_end_signal, supervised

logger = logging.getLogger(__name__)

PrintLine = Callable[[str], None]


async def run_manager(
    settings: ManagerSettings,
    *,
    bundle_server: str,
    ends_servers: bool = False,
    print_line: PrintLine = lambda sentence: None,
    on_ready: PrintLine = lambda url: None,
    stop: asyncio.Event | None = None,
    front: Front | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> int:
    """Lead, or wait to, until SIGTERM, SIGINT or `stop`; return the exit status.

    Args:
        settings: see there.
        bundle_server: module of the FL server program that runs the ServerApp of a published app.
        ends_servers: stop the active runs and their servers before leaving.
        print_line: called with each line for the terminal.
        on_ready: called with the API's URL once this manager leads.
        stop: ends the manager when it is set.
        front: the page, where there is one.
        wall_clock: the time of day as this host shows it, s.
    """
    stop = stop or asyncio.Event()
    try:
        with on_end_signal(lambda number: stop.set()), _open_journal(settings) as journal, _lease(journal) as lease:
            tasks = Tasks(settings.tasks_file)  # a wrong file ends a manager as it starts, none that is on standby
            async with supervised():
                term, listening = await _until_leading(settings, lease, journal, stop, print_line)
                if term is None:
                    return ExitCode.OK
                rules = access_rules(settings)
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(alongside(hold_lease(lease), name="lease"))
                    await stack.enter_async_context(_conflict_checked(lease))
                    journal.lead(term, lease.may_act)
                    address = stack.enter_context(listening or _listen(settings.http, rules))
                    life = leading(
                        settings,
                        journal,
                        tasks,
                        term=term,
                        listening=address,
                        bundle_server=bundle_server,
                        front=front,
                        wall_clock=wall_clock,
                    )
                    leader = await stack.enter_async_context(life)
                    print_line(f"manager leads (term {term}), API at {url_of(address, rules)}")
                    on_ready(url_of(address, rules))
                    await stop.wait()
                    if ends_servers:
                        await leader.end_runs()
    except (*_EXPECTED, ExceptionGroup) as error:
        return _ended(cause_of(error), settings, print_line)
    return ExitCode.OK


_EXPECTED = (LeaseLostError, ManagerError, BusError, OSError, SQLAlchemyError, AccessConfigError)
"""What ends a manager with a sentence; of several at once the first of these kinds explains the others."""


def cause_of(error: Exception) -> Exception:
    """Return why a manager ended, of what failed at the same time; what is not expected comes before all else."""
    if not isinstance(error, ExceptionGroup):
        return error
    causes = [cause_of(each) for each in error.exceptions]
    return next((each for each in causes if not isinstance(each, _EXPECTED)), None) or next(
        each for kind in _EXPECTED for each in causes if isinstance(each, kind)
    )


def _ended(error: Exception, settings: ManagerSettings, print_line: PrintLine) -> ExitCode:
    if isinstance(error, SQLAlchemyError):
        problem = str(getattr(error, "orig", None) or error)
        return _ended(JournalUnusableError(_journal_name(settings), problem), settings, print_line)
    if not isinstance(error, _EXPECTED):
        raise error
    logger.error("manager ends", extra={"problem": str(error)})
    print_line(f"manager ends: {error}")
    return _exit_code(error)


@asynccontextmanager
async def _conflict_checked(lease: Lease) -> AsyncIterator[None]:
    """Raise `LeaseLostError` for a conflict on the bus where the lease is lost: the bus may report a leader sooner."""
    try:
        yield
    except ConflictingInstanceError:
        await asyncio.to_thread(lease.renew)
        raise


def _listen(address: str, rules: AccessRules) -> socket.socket:
    try:
        return listen(address, rules)
    except OSError as error:
        raise ApiAddressError(address, error.strerror or str(error)) from error


async def _until_leading(
    settings: ManagerSettings, lease: Lease, journal: Journal, stop: asyncio.Event, print_line: PrintLine
) -> tuple[int | None, socket.socket | None]:
    """Return the term once this manager leads (None: stopped before), and its address where it was opened meanwhile."""
    term = await journal.call(lease.try_take)
    listening = None if term is not None else _listen_if_free(settings)
    if listening is None:
        return term or await wait_for_lease(lease, call=journal.call, stop=stop, print_line=print_line), None
    rules = access_rules(settings)
    async with standing_by(listening, rules):
        print_line(f"waits for the lead, answers at {url_of(listening, rules)}")
        term = await wait_for_lease(lease, call=journal.call, stop=stop, print_line=print_line)
    if term is None:
        listening.close()
        return None, None
    return term, listening


def _listen_if_free(settings: ManagerSettings) -> socket.socket | None:
    """Return the address, unless it is taken: on one machine the leader may have the same one."""
    try:
        return listen(settings.http, access_rules(settings))
    except OSError as error:
        logger.info("not answering on standby", extra={"address": settings.http, "problem": str(error)})
        return None


def _open_journal(settings: ManagerSettings) -> Journal:
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StateDirError(str(settings.state_dir), error.strerror or str(error)) from error
    return Journal(settings.database_url or _default_url(settings))


def _default_url(settings: ManagerSettings) -> str:
    return f"sqlite:///{settings.state_dir / 'manager.db'}"


def _journal_name(settings: ManagerSettings) -> str:
    """The journal for people, without a password."""
    return make_url(settings.database_url or _default_url(settings)).render_as_string()


def _lease(journal: Journal) -> AbstractContextManager[Lease]:
    me = f"{host_name()} pid {os.getpid()}"
    if journal.file is not None:
        return FileLease(journal.file.with_name(journal.file.name + ".lock"), journal.engine, me)
    return RowLease(journal.engine, me)


def _exit_code(error: Exception) -> ExitCode:
    match error:
        case ConflictingInstanceError():
            return ExitCode.CONFLICT
        case BrokerUrlError() | TasksFileError() | AccessConfigError():
            return ExitCode.CONFIG
        case StateDirError() | EpochFileError():
            return exit_code_of_disk(error.__cause__)
        case JournalUrlError() | JournalVersionError():
            return ExitCode.CONFIG
        case ApiAddressError() | OSError() | JournalUnusableError():
            return ExitCode.UNAVAILABLE
    return ExitCode.FAILED
