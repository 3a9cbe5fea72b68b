"""What the manager spends on a fleet of any size: `python benchmarks/simulated_fleet.py [--sizes 1000 10000 100000]`.

No broker and no socket, and simulated time: bytes of statuses go through the manager's real decoding, fleet, runs,
plan and journal (SQLite), as its loop takes turns. A figure is processor time of this process by the number of clients.
"""

import argparse
import gc
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_processes import MIB, figure, machine, save_json, table

from fedops_mqtt.bus.events import BusEvent, Connected, Received
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.core.run_member import RunWaits, TriggerFired
from fedops_mqtt.core.run_plan import EndServer, plan, waits_for
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.journal import Journal, JournaledRun
from fedops_mqtt.manager.loop import IDLE_TICK_S, MAX_STEPS, TICK_S
from fedops_mqtt.manager.open_runs import OpenRuns, RunStatusPublisher
from fedops_mqtt.protocol import (
    ClientCondition,
    ClientStatus,
    Roster,
    RunOutcome,
    ServerClient,
    ServerStatus,
    decode,
    encode,
    topics,
    utc_now,
    with_clients,
)

TASK, RUN_ID, SERVER = "fleet", "simulated", "127.0.0.1:1"
HEARTBEAT_S = 60
RUN_S = 60
"""Of simulated time, in which everybody trains."""
MAX_GROWTH = 2.0
"""Cost of a client in the largest fleet by that in the smallest; caches of the processor alone make it 1.3."""
MAX_ROSTER_BYTES = 384 * 1024
"""Of one message: what the shipped brokers take."""


class Owner:
    """Who publishes a run's status, as the publisher asks for it."""

    instance = "simulated"
    heartbeat_s = float(HEARTBEAT_S)


class SimulatedManager:
    """The manager's parts that need no socket, and its turns (`manager/loop.py`) in simulated time."""

    def __init__(self, journal: Journal) -> None:
        self.now = 1_000.0
        self.journal = journal
        self.open_runs = OpenRuns([])
        self.fleet = Fleet()
        self.reader = BusReader(self.fleet, self.open_runs)
        self.fired: list[TriggerFired] = []

    def begin_run(self, min_clients: int) -> None:
        run = Run(
            spec=RunSpec(run_id=RUN_ID, task_id=TASK, num_rounds=1, min_clients=min_clients, is_adopted=True),
            created_at=self.now,
        )
        journaled = JournaledRun(run=run, secret=b"")
        self.journal.add_run(journaled)
        self.open_runs.add(journaled)

    def take(self, events: Iterable[BusEvent]) -> None:
        self.reader.apply(events, self.now)

    def turn(self) -> None:
        """What `Manager.turn` does with what came."""
        self.reader.settle(self.now)
        for run in self.open_runs:
            if not run.has_ended and (waits := waits_for(run, self.fleet)) != run.reason:
                self.open_runs.apply(run.run_id, [RunWaits(waits)], self.now)
        for _ in range(MAX_STEPS):
            actions = [action for run in self.open_runs for action in plan(run, self.fleet, self.now)]
            self.fired += [action for action in actions if isinstance(action, TriggerFired)]
            if not (events := [action for action in actions if not isinstance(action, EndServer)]):
                break
            self.open_runs.apply(RUN_ID, events, self.now)
        if batch := self.open_runs.take_batch():
            self.journal.write(batch)
        self.reader.take_changed()

    @property
    def run(self) -> Run:
        return self.open_runs[RUN_ID]


class SimulatedClients:
    """Everybody's statuses as they are on the wire."""

    def __init__(self, num_clients: int) -> None:
        self.macs = [f"02:00:00:{n >> 16 & 255:02x}:{n >> 8 & 255:02x}:{n & 255:02x}" for n in range(num_clients)]
        self._topics = {mac: topics.client_status(TASK, mac) for mac in self.macs}
        self._seq = dict.fromkeys(self.macs, 0)
        self._said: dict[str, dict] = {mac: {"status": ClientCondition.ONLINE} for mac in self.macs}
        self._at = utc_now()

    def status_of(self, mac: str, **changed: object) -> tuple[str, bytes]:
        """Return a client's next status: as before, or as it is now."""
        if changed:
            self._said[mac] = changed
        self._seq[mac] += 1
        status = ClientStatus(
            instance=f"simulated-{mac}", epoch=1, seq=self._seq[mac], at=self._at, heartbeat_s=HEARTBEAT_S,
            task_id=TASK, client_mac=mac, client_name=f"device {mac}", **self._said[mac],
        )  # fmt: skip
        return mac, encode(status)

    def received(self, said: Iterable[tuple[str, bytes]], *, is_retained: bool = False) -> Iterator[Received]:
        """Decode, as the bus does."""
        for mac, payload in said:
            topic = self._topics[mac]
            yield Received(topic, decode(topic, payload), is_retained)


class Meter:
    """Adds up processor time, by what it was for."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = {}

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            self.spent_s[name] = self.spent_s.get(name, 0.0) + time.process_time() - began


def live(num_clients: int, folder: Path) -> dict[str, float]:
    """One life of a fleet: known, idle for a heartbeat, a run of everybody, silence. Return microseconds a client."""
    clients, meter = SimulatedClients(num_clients), Meter()
    with Journal(f"sqlite:///{folder / f'{num_clients}.db'}") as journal:
        gc.collect()
        before_mib = resident_mib()
        manager = SimulatedManager(journal)
        births = [clients.status_of(mac) for mac in clients.macs]
        with meter.measuring("known from retained statuses"):
            manager.take([Connected("5")])
            manager.take(clients.received(births, is_retained=True))
            manager.turn()
        del births
        pass_time(manager, clients, meter, "idle, a minute", HEARTBEAT_S, IDLE_TICK_S)
        memory_mib = resident_mib() - before_mib
        manager.begin_run(num_clients)
        with meter.measuring("chosen and triggered"):
            manager.take([server_reports("ready", {}, 1)])
            manager.turn()
        assert len(manager.fired) == num_clients, len(manager.fired)
        answers = [clients.status_of(mac, **training(mac)) for mac in clients.macs]
        with meter.measuring("answers"):
            manager.take(clients.received(answers))
            manager.turn()
        del answers
        pass_time(manager, clients, meter, "in a run, a minute", RUN_S, TICK_S)
        sizes = {"bytes of a run's status": len(encode(describe(manager)))}
        finished = {mac: ServerClient(status="finished", attempt=1) for mac in clients.macs}
        word = server_reports("finished", finished, 2)
        sizes["bytes of a server's status"] = len(encode(word.message))
        ends = [clients.status_of(mac, **ended()) for mac in clients.macs]
        with meter.measuring("finished"):
            manager.take(clients.received(ends))
            manager.take([word])
            manager.turn()
            manager.turn()
        assert manager.run.outcome is RunOutcome.COMPLETED, manager.run.reason
        assert all(member.has_ended for member in manager.run.members.values())
        manager.now += 4 * HEARTBEAT_S
        with meter.measuring("all silent"):
            manager.turn()
        assert manager.fleet.num_here == 0
    spent = {f"{name}, µs a client": seconds / num_clients * 1e6 for name, seconds in meter.spent_s.items()}
    whole = {"whole life, µs a client": sum(meter.spent_s.values()) / num_clients * 1e6}
    return {**spent, **whole, "memory, KiB a client": memory_mib * 1024 / num_clients, **sizes}


def pass_time(
    manager: SimulatedManager, clients: SimulatedClients, meter: Meter, name: str, seconds: float, tick_s: float
) -> None:
    """Turn after turn, while everybody repeats its status once in a heartbeat."""
    num_turns = int(seconds / tick_s)
    for number in range(num_turns):
        manager.now += tick_s
        share = int(HEARTBEAT_S / tick_s)
        beats = [clients.status_of(mac) for mac in clients.macs[number % share :: share]]
        with meter.measuring(name):
            manager.take(clients.received(beats))
            manager.turn()


def training(mac: str) -> dict:
    said = {"run_id": RUN_ID, "attempt": 1, "launch": 0}
    return {
        "status": ClientCondition.TRAIN_STARTED,
        "run": said | {"phase": "training", "round": 1},
        "last_trigger": said | {"answer": "accepted"},
    }


def ended() -> dict:
    return {
        "status": ClientCondition.TRAIN_FINISHED,
        "last_run": {"run_id": RUN_ID, "attempt": 1, "outcome": "finished"},
    }


def server_reports(status: str, clients: dict[str, ServerClient], seq: int) -> Received:
    said = ServerStatus(
        instance="server", epoch=1, seq=seq, at=utc_now(), heartbeat_s=HEARTBEAT_S * 100, task_id=TASK, status=status,
        run_id=RUN_ID, launch=0, server_ip=SERVER,
    )  # fmt: skip
    listing = with_clients(said, Roster().part(clients))
    return Received(topics.server_status(TASK), listing, is_retained=False)


def describe(manager: SimulatedManager):
    publisher = RunStatusPublisher(manager.open_runs, term=1)
    return publisher.describe(manager.run, Owner(), Stamp(1, 1))  # type: ignore[arg-type]


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def growth(sizes: dict[int, dict[str, float]]) -> float:
    """Return what a client costs in the largest fleet by what it costs in the smallest."""
    name = "whole life, µs a client"
    return sizes[max(sizes)][name] / sizes[min(sizes)][name]


def report(sizes: dict[int, dict[str, float]]) -> str:
    first = sizes[min(sizes)]
    rows = []
    for name in first:
        wanted, holds = "", ""
        if name.startswith("whole"):
            wanted, holds = f"at most {MAX_GROWTH:g} times", "yes" if growth(sizes) <= MAX_GROWTH else "NO"
        if name.startswith("bytes"):
            wanted = f"at most {MAX_ROSTER_BYTES}"
            holds = "yes" if all(taken[name] <= MAX_ROSTER_BYTES for taken in sizes.values()) else "NO"
        rows.append((name, *(figure(taken[name]) for taken in sizes.values()), wanted, holds))
    return table(("clients", *sizes, "wanted", "holds"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1_000, 10_000, 100_000], help="clients to simulate")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options, about = parser.parse_args(), machine()
    with tempfile.TemporaryDirectory(prefix="simulated-fleet-") as folder:
        live(100, Path(folder))  # what is imported and cached at the first use is nobody's
        sizes = {size: live(size, Path(folder)) for size in sorted(options.sizes)}
    print(f"machine: {about}\n\n{report(sizes)}\n")
    save_json(options.json, {"machine": about, "sizes": sizes})


if __name__ == "__main__":
    main()
