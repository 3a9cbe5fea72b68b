"""What must hold when the dust has settled, read from journals, logs, models and a fresh look at the bus."""

import re
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import httpx
from chaos_world import SIGNALS_OF_DEATH, TASK, World
from yard import observing

from fedops_mqtt.client.journal import Journal, identity_dir
from fedops_mqtt.core.fleet import Presence
from fedops_mqtt.protocol import ClientStatus, Outcome
from fedops_mqtt.server.store import ModelStore

_BEGINS = re.compile(r"a training process begins run_id=(\S+) attempt=(\d+)")


async def broken_invariants(world: World) -> list[str]:
    """Return every invariant that does not hold, as a sentence."""
    found = [
        *_trained_twice(world),
        *_runs_without_end(world),
        *_models(world),
        *_left_over(world),
        *_tracebacks(world),
    ]
    found += [sentence async for sentence in _presence(world)]
    return found


def _trained_twice(world: World) -> Iterator[str]:
    """G-1: for each run, client and attempt training starts at most once."""
    for mac, daemons in zip(world.macs, world.daemons, strict=True):
        begun = Counter(pair for daemon in daemons for pair in _BEGINS.findall(daemon.stderr))
        for (run_id, attempt), times in begun.items():
            if times > 1:
                yield f"{mac} trained {run_id} attempt {attempt} {times} times"


def _runs_without_end(world: World) -> Iterator[str]:
    """G-3: every run ended, with an outcome and a reason."""
    with sqlite3.connect(world.manager_state / "manager.db") as journal:
        rows = journal.execute("SELECT run_id, outcome, reason, ended_at FROM runs").fetchall()
    if not rows:
        yield "the manager's journal has no run at all"
    for run_id, outcome, reason, ended_at in rows:
        if not outcome or not reason or ended_at is None:
            yield f"run {run_id} has no end: outcome {outcome}, reason {reason}"


def _models(world: World) -> Iterator[str]:
    """Whatever was saved can be read, and a completed run has a model."""
    store = ModelStore(str(world.store), task_id=TASK, model_name="digits")
    versions = list(store.versions())
    for version in versions:
        store.load(version)
    with sqlite3.connect(world.manager_state / "manager.db") as journal:
        (completed,) = journal.execute("SELECT count(*) FROM runs WHERE outcome = 'completed'").fetchone()
    if completed > len(versions):
        yield f"{completed} runs completed, {len(versions)} models were saved"


def _left_over(world: World) -> Iterator[str]:
    for process in (*world.trainings(), *world.servers()):
        yield f"process {process.pid} is left: {' '.join(process.cmdline()[-3:])}"


def _tracebacks(world: World) -> Iterator[str]:
    """No process of ours ended by itself, and none said a traceback."""
    for started in (*(each for daemons in world.daemons for each in daemons), world.manager):
        if started is not None and started.process.returncode not in (None, *SIGNALS_OF_DEATH):
            yield f"{started.name} ended with {started.process.returncode}: {started.stderr[-2000:]}"
        if started is not None and "Traceback (most recent call last)" in started.stderr:
            yield f"{started.name} said a traceback: {started.stderr[-3000:]}"


async def _presence(world: World) -> AsyncIterator[str]:
    """G-2 and G-4: a newcomer sees each client as it is, with the outcome that its own journal holds."""
    async with observing(world.broker.url, TASK) as fresh:
        await fresh.until(lambda: all(fresh.client(mac) is not None for mac in world.macs))
        for number, mac in enumerate(world.macs):
            view = fresh.client(mac)
            assert view is not None
            for sentence in _client_as_it_is(world, number, view.status, view.presence):
                yield sentence
    async with httpx.AsyncClient(base_url=f"http://{world.manager_address}", timeout=20, trust_env=False) as api:
        items = (await api.get("/api/v1/clients", params={"task_id": TASK})).json()["items"]
    for item in items:
        if item["presence"] == Presence.OUT:
            yield f"the manager thinks that {item['client_mac']} is out: {item['reason']}"


def _client_as_it_is(world: World, number: int, said: ClientStatus, presence: Presence) -> Iterator[str]:
    mac = world.macs[number]
    if presence is Presence.OUT:
        yield f"{mac} lives and is shown out: {said.reason}"
    if said.run is not None:
        yield f"{mac} is idle and is shown training {said.run.run_id}"
    facts = Journal(identity_dir(world.client_state(number), TASK, mac)).load()
    if said.last_run != facts.last_run:
        yield f"{mac} has {facts.last_run} in its journal and says {said.last_run}"
    finished = {(each.run_id, each.attempt) for each in facts.answers if each.outcome is Outcome.FINISHED}
    if said.last_run and said.last_run.outcome is Outcome.FINISHED:
        pair = (said.last_run.run_id, said.last_run.attempt)
        if pair not in finished:
            yield f"{mac} says that it finished {pair}, which its journal never accepted"
