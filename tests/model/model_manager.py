"""The manager in the model: the real watch, ledger and plan over a database that outlives the process.

It may die between any two of: what it read, what it writes down, what it does. A frozen one goes on where it stood,
though another one may lead by then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model_bus import Line
from model_device import AT, TASK
from model_owner import HEARTBEAT_S, READER_HEARTBEAT_S, Owner
from model_server import Server
from model_truth import ReaderCheck

from fedops_mqtt.bus.events import BusEvent, Connected
from fedops_mqtt.core.fencing import Stamp, next_term, start_of
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.core.ownership import new_instance
from fedops_mqtt.core.run import Run
from fedops_mqtt.core.run_member import (
    ServerExited,
    ServerLaunched,
    ServerUnreachable,
    StopRequested,
    StopSent,
    TriggerFired,
)
from fedops_mqtt.core.run_plan import Action, EndServer, plan
from fedops_mqtt.manager.bus_reader import BusReader, needs_watching
from fedops_mqtt.manager.journal import JournaledRun
from fedops_mqtt.manager.open_runs import OpenRuns
from fedops_mqtt.manager.run_record import dump_member, dump_run, load_run
from fedops_mqtt.protocol import (
    Channel,
    ManagerCondition,
    ManagerStatus,
    StartTrigger,
    StopTrigger,
    Topic,
    topics,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_world import World

TICK_S = 1.0
LEASE_S = 15.0
STANDBY_POLL_S = 0.5
RESTART_S = 5.0
"""`RestartSec` of the shipped unit; an exit with status 1 is restarted (`RestartPreventExitStatus` is 78 and 80)."""
PROBE_AFTER_S = 6.0
STRAGGLER_RETRY_S = 5.0
_READ = (Channel.CLIENT_STATUS, Channel.SERVER_STATUS, Channel.RUN_STATUS)


class LeaseGoneError(Exception):
    """The database says that another manager leads."""


@dataclass
class Database:
    """What is on disk: runs as text, launches, the lease."""

    runs: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    launches: dict[tuple[str, int], Server | None] = field(default_factory=dict)
    term: int = 0
    held_until: float = float("-inf")
    last_time: float = 0.0
    on_write: Callable[[int, int], None] = lambda term, present: None
    """Told of whoever writes, by its term, and of the term that leads."""

    def write(self, term: int, now: float, *runs: Run) -> None:
        """One turn of the leader of this term, or nothing."""
        self.check(term)
        self.on_write(term, self.term)
        self.last_time = now
        for run in runs:
            members = {mac: dump_member(member) for mac, member in run.members.items()}
            self.runs[run.run_id] = (dump_run(run), members)

    def check(self, term: int) -> None:
        if term != self.term:
            raise LeaseGoneError

    def load(self) -> list[Run]:
        return [load_run(state, members) for state, members in self.runs.values()]


class Manager:
    """One process: on standby until the lease is free, then leading until it dies."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kernel = world.kernel
        self.db = world.database
        self.is_alive = True
        self.is_frozen = False
        self.term = 0
        self.line: Line | None = None
        self.open_runs = OpenRuns([])
        self.bus_reader = BusReader(Fleet(default_heartbeat_s=READER_HEARTBEAT_S), self.open_runs)
        self._inbox: list[BusEvent] = []
        self._reports: list[tuple[str, ServerExited | ServerUnreachable | StopRequested]] = []
        self._silent_since: dict[str, float] = {}
        self._told_at: dict[str, float] = {}
        self._is_turn_planned = False
        self._wait_for_lease()

    @property
    def is_leading(self) -> bool:
        return self.is_alive and self.line is not None

    @property
    def fleet(self) -> Fleet:
        return self.bus_reader.fleet

    # The lease

    def _wait_for_lease(self) -> None:
        if not self.is_alive:
            return
        if not self.is_frozen and self.db.held_until <= self.kernel.now:
            self.term = self.db.term = next_term(self.db.term, int(self.world.server_disk.unix_ms() / 1000))
            self.db.held_until = self.kernel.now + LEASE_S
            self._lead()
        else:
            self.kernel.after(STANDBY_POLL_S, self._wait_for_lease)

    def _renew(self) -> None:
        if self.is_alive and not self.is_frozen:
            if self.db.term != self.term:
                self._end("lost its lease")
                return
            self.db.held_until = self.kernel.now + LEASE_S
        if self.is_alive:
            self.kernel.after(LEASE_S / 3, self._renew)

    def _lead(self) -> None:
        self.kernel.note(f"manager leads, term {self.term}")
        self.open_runs = OpenRuns([JournaledRun(run=run, secret=b"") for run in self.db.load()])
        self.bus_reader = BusReader(Fleet(default_heartbeat_s=READER_HEARTBEAT_S), self.open_runs)
        disk = self.world.manager_disk
        instance = new_instance(
            start_of(self.term, int(self.world.server_disk.unix_ms())), f"{self.kernel.rng.getrandbits(48):012x}"
        )
        self.owner = Owner(
            self.kernel, disk, topic=topics.manager_status(), instance=instance,
            make_snapshot=lambda stamp: self._status(instance, stamp, ManagerCondition.LEADING),
            make_will=lambda stamp: self._status(instance, stamp, ManagerCondition.MANAGER_OUT, "lost"),
            on_conflict=self._meet_conflicting_instance,
        )  # fmt: skip
        self.line = Line(
            self.world.broker,
            f"manager-{instance}",
            wants=self._wants,
            receive=self._receive,
            make_will=self.owner.will,
        )
        self.owner.line = self.line
        self.reader_check = ReaderCheck(
            name=f"manager {self.term}", fleet=self.bus_reader.fleet, connected_at=self._connected_since
        )
        self.line.open()
        self.kernel.after(LEASE_S / 3, self._renew)
        for run in self.open_runs:
            if run.launch > 0 and run.exited_at is None:
                self._resume(run)
        self._tick()

    def _connected_since(self) -> float | None:
        return None if self.line is None else self.line.connected_at

    def _meet_conflicting_instance(self, conflicting_instance: str) -> None:
        if self.world.leader() is self and self.db.term == self.term:
            self.world.broken(f"the leading manager yields to {conflicting_instance}")
        self.die("a rival")

    def die(self, why: str = "killed") -> None:
        if not self.is_alive:
            return
        self.kernel.note(f"manager (term {self.term}) dies: {why}")
        self.is_alive = False
        if self.db.term == self.term and self.line is not None and self.world.is_file_lease:
            self.db.held_until = float("-inf")
        if self.line is not None:
            self.line.close(is_clean=False, will_after_s=self.world.will_delay())
        if self in self.world.managers:
            self.world.managers.remove(self)

    def _end(self, why: str) -> None:
        """End with status 1, after which its service manager starts it again: it may be the only one that is left."""
        self.die(why)
        self.kernel.after(RESTART_S, lambda: self.world.managers.append(Manager(self.world)))

    def thaw(self) -> None:
        self.is_frozen = False
        self._plan_turn(0.0)

    # The loop

    def _wants(self, topic: Topic) -> bool:
        return topic.channel in _READ or topic == topics.manager_status()

    def _receive(self, event: BusEvent) -> None:
        if not self.is_alive:
            return
        if isinstance(event, Connected) or getattr(event, "topic", None) == topics.manager_status():
            self.owner.receive(event)
        self._inbox.append(event)
        self._plan_turn(0.01)

    def _plan_turn(self, delay_s: float) -> None:
        if not self._is_turn_planned:
            self._is_turn_planned = True
            self.kernel.after(delay_s, self._turn)

    def _tick(self) -> None:
        if self.is_alive:
            self._plan_turn(0.0)
            self.kernel.after(TICK_S, self._tick)

    def report(self, run_id: str, event: ServerExited | ServerUnreachable | StopRequested) -> None:
        self._reports.append((run_id, event))
        self._plan_turn(0.01)

    def _turn(self) -> None:
        self._is_turn_planned = False
        if not self.is_leading or self.is_frozen:
            return
        now = self.kernel.now
        events, self._inbox = self._inbox, []
        self.bus_reader.apply(events, now)
        self.bus_reader.settle(now)
        reports, self._reports = self._reports, []
        for run_id, event in reports:
            self.open_runs.apply(run_id, [event], now)
        try:
            self._plan_and_act(now)
        except LeaseGoneError:
            self._end("another manager leads")
            return
        self._probe(now)
        self._stop_clients_of_closed_runs(now)

    def _plan_and_act(self, now: float) -> None:
        planned: list[tuple[str, Action]] = []
        for _ in range(4):
            plans = [(run.run_id, plan(run, self.fleet, now)) for run in self.open_runs]
            planned += [(run_id, action) for run_id, actions in plans for action in actions]
            events = [(run_id, [a for a in actions if not isinstance(a, EndServer)]) for run_id, actions in plans]
            for run_id, happened in events:
                self.open_runs.apply(run_id, happened, now)
            if not any(happened for _, happened in events):
                break
        if self._dies_here():
            return
        batch = self.open_runs.take_batch()
        if batch:
            self.db.write(self.term, now, *(after for _, after in batch.runs.values()))
            for _, after in batch.runs.values():
                self.world.run_is_written(after)
        for run_id, action in planned:
            if self._dies_here():
                return
            self._act(self.open_runs[run_id], action)

    def _dies_here(self) -> bool:
        if self.is_alive and self.world.is_troubled and self.kernel.chance(0.0004):
            self.die()
        return not self.is_alive

    def _act(self, run: Run, action: Action) -> None:
        self.kernel.note(f"manager {self.term}: {action}")
        match action:
            case ServerLaunched(launch=launch):
                self._launch(run, launch)
            case EndServer():
                server = self.db.launches.get((run.run_id, run.launch))
                if server is not None and server.is_alive:
                    server.terminate()
            case TriggerFired():
                self.world.truth.trigger_fires(run.run_id, action)
                self._fire(run, action)
            case StopSent(client_mac=mac, attempt=attempt, reason=reason):
                self._stop(run.run_id, mac, attempt, reason)
            case _:
                pass

    def _fire(self, run: Run, action: TriggerFired) -> None:
        assert self.line is not None
        if run.server_ip is None:
            return
        trigger = StartTrigger(
            run_id=run.run_id, attempt=action.attempt, launch=action.launch, term=self.term, task_id=TASK,
            client_mac=action.client_mac, instance=action.instance, server_ip=run.server_ip, at=AT,
        )  # fmt: skip
        self.line.publish(topics.client_start(TASK, action.client_mac), trigger)

    def _stop(self, run_id: str, mac: str, attempt: int, reason: str) -> None:
        assert self.line is not None
        stop = StopTrigger(
            run_id=run_id, attempt=attempt, term=self.term, task_id=TASK, client_mac=mac, reason=reason, at=AT
        )
        self.line.publish(topics.client_stop(TASK, mac), stop)

    # Servers

    def _launch(self, run: Run, launch: int) -> None:
        for (run_id, _), server in list(self.db.launches.items()):
            if run_id == run.run_id and server is not None and server.is_alive:
                server.exit("killed by SIGKILL")
        self.db.check(self.term)
        self.db.launches[run.run_id, launch] = None

        def begin() -> None:
            if self.is_alive and not self.is_frozen and self.db.launches.get((run.run_id, launch), self) is None:
                spec = run.spec
                self.db.launches[run.run_id, launch] = Server(
                    self.world, run.run_id, launch, min_clients=spec.min_clients, num_rounds=spec.num_rounds
                )

        self.kernel.soon(0.0, 0.2, begin)

    def _resume(self, run: Run) -> None:
        server = self.db.launches.get((run.run_id, run.launch))
        if server is None:
            self.report(run.run_id, ServerExited(run.launch, "the manager ended before it had started the FL server"))
        elif not server.is_alive:
            self.report(run.run_id, ServerExited(run.launch, server.exit_reason))
        elif run.has_ended:
            server.terminate()

    def _probe(self, now: float) -> None:
        for run in self.open_runs:
            if self.fleet.listening_since is None or not needs_watching(run, self.fleet):
                self._silent_since.pop(run.run_id, None)
            elif now - self._silent_since.setdefault(run.run_id, now) > PROBE_AFTER_S:
                self._silent_since.pop(run.run_id)
                server = self.db.launches.get((run.run_id, run.launch))
                if server is None or not server.is_alive:
                    self.report(run.run_id, ServerUnreachable(run.launch))

    def _stop_clients_of_closed_runs(self, now: float) -> None:
        for key in list(self.bus_reader.clients_of_closed_runs):
            view, mac = self.fleet.client(*key), key[1]
            hand = view.status.run if view is not None and not view.is_out else None
            if hand is None or hand.run_id in self.open_runs or hand.run_id not in self.db.runs:
                self.bus_reader.clients_of_closed_runs.pop(key)
            elif now - self._told_at.get(mac, float("-inf")) >= STRAGGLER_RETRY_S:
                self._told_at[mac] = now
                self._stop(hand.run_id, mac, hand.attempt, "the run is closed")

    def _status(
        self, instance: str, stamp: Stamp, condition: ManagerCondition, reason: str | None = None
    ) -> ManagerStatus:
        return ManagerStatus(
            instance=instance, epoch=stamp.epoch, seq=stamp.seq, at=AT, heartbeat_s=HEARTBEAT_S,
            status=condition, reason=reason, term=self.term,
        )  # fmt: skip
