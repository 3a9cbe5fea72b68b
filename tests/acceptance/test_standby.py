"""Two managers as processes: the second waits and says so, leads when the first is gone, and fires nothing again."""

import asyncio
import re
import signal
from collections import Counter
from dataclasses import dataclass
from functools import partial

import psutil
import pytest
from device_plan import DevicePlan
from line_site import APP, PROGRAM, start_with_all
from postgres import Postgres
from yard import Installed, Site, eventually

from fedops_mqtt.manager.lease import ROW_LEASE_S
from fedops_mqtt.protocol import RunOutcome
from fedops_mqtt.runtime.systemd import ExitCode

PATIENT = "[tasks.{task_id}.limits]\ntrigger_retry_s = 300\ntrigger_answer_s = 300"
"""Nobody says a trigger again because an answer takes its time on a busy machine: what comes twice was fired twice."""
ROUNDS = 3


async def start_run(site: Site, device_plan: DevicePlan, clients: dict[str, Installed]) -> str:
    """Start a run whose clients compute in its first round until they are told more."""
    return await start_with_all(site, device_plan, clients, num_rounds=ROUNDS, min_clients=2)


async def until_standby(second: Installed, first: Installed) -> None:
    """Wait until the second manager says for whom it waits."""
    await second.until_printed(rf"on standby: another manager leads \(.* pid {first.process.pid}\)")


async def finish(site: Site, device_plan: DevicePlan, run_id: str) -> None:
    """Let the run go on, to its good end."""
    device_plan.write({})
    run = await site.observer.until_ended(run_id)
    assert (run.outcome, run.round) == (RunOutcome.COMPLETED, ROUNDS)
    assert (await site.ask(f"/runs/{run_id}"))["launch"] == 1


async def freeze(manager: Installed) -> None:
    """Stop a process where it stands, and wait until the system says that it does."""
    manager.process.send_signal(signal.SIGSTOP)
    process = psutil.Process(manager.process.pid)
    await eventually(lambda: process.status() == psutil.STATUS_STOPPED)


@pytest.mark.long
async def test_a_standby_leads_when_the_leader_is_killed_and_fires_nothing_again(
    site: Site, device_plan: DevicePlan
) -> None:
    clients = await site.start_clients(2, APP)
    first = await site.start_manager(module=PROGRAM, more=PATIENT.format(task_id=site.task_id))
    term = await site.until_leading(first)
    run_id = await start_run(site, device_plan, clients)
    second = await site.launch_manager(site.yard.folder / "tasks.toml")
    await until_standby(second, first)
    await first.end(signal.SIGKILL)
    assert await site.until_leading(second) > term
    await finish(site, device_plan, run_id)
    assert site.observer.starts == Counter({(mac, 1): 1 for mac in clients})


@pytest.mark.long
async def test_a_leader_that_was_frozen_beside_its_journal_still_leads_when_it_goes_on(
    site: Site, device_plan: DevicePlan
) -> None:
    """On one machine the lock on the file decides, and a frozen process holds it: nobody leads beside it."""
    clients = await site.start_clients(2, APP)
    first = await site.start_manager(module=PROGRAM, more=PATIENT.format(task_id=site.task_id))
    run_id = await start_run(site, device_plan, clients)
    await freeze(first)
    second = await site.launch_manager(site.yard.folder / "tasks.toml")
    await until_standby(second, first)
    await site.observer.until(lambda: (view := site.observer.manager) is not None and view.is_out)
    first.process.send_signal(signal.SIGCONT)
    await finish(site, device_plan, run_id)
    assert "manager leads (term" not in second.stdout
    assert site.observer.starts == Counter({(mac, 1): 1 for mac in clients})


@dataclass(frozen=True, kw_only=True)
class LeaderAndStandby:
    """Two managers of one database, the first of which leads in `term` and has a run under way."""

    first: Installed
    second: Installed
    term: int
    run_id: str
    clients: dict[str, Installed]


async def leader_and_standby(site: Site, device_plan: DevicePlan, database_url: str) -> LeaderAndStandby:
    """Start a fleet, a manager, a run, and a second manager."""
    launch_manager = partial(
        site.launch_manager,
        site.write_tasks(module=PROGRAM, more=PATIENT.format(task_id=site.task_id)),
        database_url=database_url,
    )
    clients = await site.start_clients(2, APP)
    first = await launch_manager(state_dir=site.yard.folder / "first")
    term = await site.until_leading(first)
    run_id = await start_run(site, device_plan, clients)
    second = await launch_manager(state_dir=site.yard.folder / "second")
    await until_standby(second, first)
    return LeaderAndStandby(first=first, second=second, term=term, run_id=run_id, clients=clients)


@pytest.mark.long
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_leader_of_a_database_server_that_goes_silent_is_replaced_and_fires_nothing_again(
    site: Site, device_plan: DevicePlan, postgres: Postgres, ending: signal.Signals
) -> None:
    """A row decides: silence ends the lease, and the term fences who had it."""
    pair = await leader_and_standby(site, device_plan, postgres.new_database())
    first, second = pair.first, pair.second
    if ending is signal.SIGKILL:
        await first.end(ending)
    else:
        await freeze(first)
    assert await site.until_leading(second) > pair.term
    if ending is signal.SIGSTOP:
        first.process.send_signal(signal.SIGCONT)
        assert await first.wait() == ExitCode.FAILED
        assert re.search(rf"another manager leads now \(.* pid {second.process.pid}\)", first.stdout), first.stderr
        assert "Traceback" not in first.stderr
    await finish(site, device_plan, pair.run_id)
    assert site.observer.starts == Counter({(mac, 1): 1 for mac in pair.clients})


@pytest.mark.long
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["database stopped", "database frozen"])
async def test_a_leader_that_fails_together_with_its_database_is_replaced_and_fires_nothing_again(
    site: Site, device_plan: DevicePlan, own_postgres: Postgres, ending: signal.Signals, is_frozen: bool
) -> None:
    pair = await leader_and_standby(site, device_plan, own_postgres.new_database())
    first, second = pair.first, pair.second
    await asyncio.to_thread(own_postgres.freeze if is_frozen else own_postgres.stop)
    if ending is signal.SIGKILL:
        await first.end(ending)
    else:
        await freeze(first)
    await asyncio.sleep(2 * ROW_LEASE_S)
    assert "manager leads (term" not in second.stdout, "as long as nobody can renew, nobody is late"
    await asyncio.to_thread(own_postgres.go_on if is_frozen else own_postgres.start)
    assert await site.until_leading(second) > pair.term
    if ending is signal.SIGSTOP:
        first.process.send_signal(signal.SIGCONT)
        assert await first.wait() == ExitCode.FAILED
        assert "Traceback" not in first.stderr
    await finish(site, device_plan, pair.run_id)
    assert "Traceback" not in second.stderr
    assert site.observer.starts == Counter({(mac, 1): 1 for mac in pair.clients})
