"""What must hold when the dust has settled, read from journals, logs, models and a fresh look at the bus."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import chaos_journals
from chaos_journals import ManagerJournal, read_manager_journal
from chaos_world import TASK, World
from reader import Json, Observer
from yard import Installed

from fedops_mqtt import AsyncManagerClient
from fedops_mqtt.core.client_state import ClientState
from fedops_mqtt.core.fleet import Presence
from fedops_mqtt.core.run import Run
from fedops_mqtt.device.journal import ClientJournal, identity_dir
from fedops_mqtt.protocol import ClientStatus, Outcome, RunStatus
from fedops_mqtt.store.versions import ModelStore

PATIENCE_S = 300.0
"""A connection that was half open to the last is found out by its keepalive (2 s here) and made anew."""
_BEGINS = re.compile(r"a training process begins run_id=(\S+) attempt=(\d+)")


async def broken_invariants(world: World) -> list[str]:
    """Return every invariant that does not hold, as a sentence."""
    journal = read_manager_journal(world.database_url)
    found = [
        *chaos_journals.runs_without_end(journal),
        *chaos_journals.changed_decisions(journal),
        *chaos_journals.overlapping_runs(journal),
        *chaos_journals.models(journal, ModelStore(str(world.store), task_id=TASK, model_name="digits")),
        *_trainings(world, journal),
        *_left_over(world),
        *_tracebacks(world),
    ]
    found += [sentence async for sentence in _bus(world, journal)]
    found += [sentence async for sentence in _manager(world)]
    return found


def _facts_of(world: World, number: int) -> ClientState:
    return ClientJournal(identity_dir(world.client_state(number), TASK, world.macs[number])).load()


def begun_by(daemon: Installed) -> list[tuple[str, int]]:
    """Return the trainings that a daemon began, as its log says."""
    return [(run_id, int(attempt)) for run_id, attempt in _BEGINS.findall(daemon.stderr)]


def _trainings(world: World, journal: ManagerJournal) -> Iterator[str]:
    """G-1 and G-2: for each run, client and attempt training starts at most once, and its outcome is known."""
    count = 0
    for number, mac in enumerate(world.macs):
        begun = [pair for daemon in world.daemons[number] for pair in begun_by(daemon)]
        count += len(begun)
        for (run_id, attempt), times in Counter(begun).items():
            if times > 1:
                yield f"{mac} trained {run_id} attempt {attempt} {times} times"
        facts = _facts_of(world, number)
        yield from chaos_journals.disagreements(journal, mac, facts)
        if number not in world.lost_states:
            yield from chaos_journals.begun_without_start(mac, begun, facts)
    if not count:
        yield "nobody trained at all, so nothing was shown"


def _left_over(world: World) -> Iterator[str]:
    for process in (*world.trainings(), *world.servers()):
        yield f"process {process.pid} is left: {' '.join(process.cmdline()[-3:])}"


def _tracebacks(world: World) -> Iterator[str]:
    """No process of ours ended by itself, and none said a traceback."""
    for started in world.everybody():
        if started.process.returncode not in (None, *world.wanted_ends.get(started.name, ())):
            yield f"{started.name} ended with {started.process.returncode}: {started.stderr[-2000:]}"
        if said := _first_traceback(started.stderr):
            yield f"{started.name} said a traceback: {said}"
    for log in sorted(world.manager_state.rglob("*.log")):
        if said := _first_traceback(log.read_text(errors="replace")):
            yield f"{log} has a traceback: {said}"


def _first_traceback(log: str) -> str:
    """Return the first traceback of a log with what stands around it; empty: there is none."""
    at = log.find("Traceback (most recent call last)")
    return log[max(0, at - 1000) : at + 6000] if at >= 0 else ""


async def _bus(world: World, journal: ManagerJournal) -> AsyncIterator[str]:
    """G-2 and G-4: a newcomer sees each client and each run as it is, with the outcome that the journals hold."""
    async with world.ground.observing() as fresh:
        await fresh.until(lambda: all(fresh.client(mac) is not None for mac in world.macs))
        for number, mac in enumerate(world.macs):
            view = fresh.client(mac)
            assert view is not None
            said = ClientStatus.model_validate(view.status)
            for sentence in _client_as_it_is(world, number, said, is_out=view.is_out):
                yield sentence
        for run in journal.runs:
            said = RunStatus.model_validate(await _run_on_the_bus(fresh, run))
            if (said.outcome, said.reason) != (run.outcome, run.reason):
                yield f"run {run.run_id} is {run.outcome} ({run.reason}), the bus says {said.outcome} ({said.reason})"
            shown = {mac: member.status for mac, member in said.clients.items()}
            if shown != {mac: member.status for mac, member in run.members.items()}:
                yield f"run {run.run_id} has {run.members}, the bus says {shown}"


async def _run_on_the_bus(fresh: Observer, run: Run) -> Json:
    """Return what the bus says of a run in the quiet: a manager that was cut off to the last has to come back first."""
    try:
        return await fresh.until_run(run.run_id, lambda said: said.outcome == run.outcome, timeout_s=PATIENCE_S)
    except AssertionError:
        return await fresh.until_run(run.run_id, lambda _: True)


async def _manager(world: World) -> AsyncIterator[str]:
    async with AsyncManagerClient(f"http://{world.manager_address}", timeout_s=PATIENCE_S) as api:
        clients = await api.clients(task_id=TASK)
    for client in clients:
        if client.presence is Presence.OUT:
            yield f"the manager thinks that {client.client_mac} is out: {client.reason}"


def _client_as_it_is(world: World, number: int, said: ClientStatus, *, is_out: bool) -> Iterator[str]:
    mac = world.macs[number]
    if is_out:
        yield f"{mac} lives and is shown out: {said.reason}"
    if said.run is not None:
        yield f"{mac} is idle and is shown training {said.run.run_id}"
    facts = _facts_of(world, number)
    if said.last_run != facts.last_run:
        yield f"{mac} has {facts.last_run} in its journal and says {said.last_run}"
    if said.last_run and said.last_run.outcome != Outcome.FINISHED and not said.last_run.reason:
        yield f"{mac} says {said.last_run} and not why"
    finished = {(each.run_id, each.attempt) for each in facts.answers if each.outcome == Outcome.FINISHED}
    if said.last_run and said.last_run.outcome == Outcome.FINISHED:
        pair = (said.last_run.run_id, said.last_run.attempt)
        if pair not in finished:
            yield f"{mac} says that it finished {pair}, which its journal never accepted"
