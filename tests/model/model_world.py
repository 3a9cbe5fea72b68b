"""One seeded schedule over clients, a manager and its standby, FL servers and a broker, and what must never be.

Trouble first, then quiet: in the quiet everything is started again and the network delivers, and the truth must show.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from model_bus import Broker, Kernel, Line
from model_device import LONGEST_LEFTOVER_S, TASK, Device
from model_manager import Database, Manager
from model_owner import HEARTBEAT_S, Disk
from model_server import Server

from fedops_mqtt.bus.events import BusEvent, Cleared, Connected, Disconnected, Received
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.core.fleet import Fleet, Presence
from fedops_mqtt.core.run import Run, RunLimits, RunSpec
from fedops_mqtt.core.run_events import ServerExited, StopRequested
from fedops_mqtt.core.run_plan import FireTrigger
from fedops_mqtt.protocol import (
    ClientCondition,
    ClientStatus,
    ManagerStatus,
    MemberCondition,
    Outcome,
    RunOutcome,
    ServerStatus,
    topics,
)

LIMITS = RunLimits(
    trigger_answer_s=12, trigger_retry_s=3, server_start_s=15, join_s=25, run_s=120, close_grace_s=3,
    max_launches=3, max_attempts=4,
)  # fmt: skip
TROUBLE_S = 150.0
SETTLE_S = LIMITS.run_s + 60.0
"""After the trouble: every run that began in it has ended."""
LAST_RUN_S = 60.0
"""And then one more run has this long to complete."""
YEAR_S = 365.25 * 86400
MAX_STORY = 160


class BrokenInvariantError(AssertionError):
    """Something happened that the guarantees exclude."""


class Reader:
    """Somebody who watches: `fedops-mqtt watch`, a dashboard."""

    def __init__(self, world: "World", name: str) -> None:
        self._kernel = world.kernel
        self.fleet = Fleet(default_heartbeat_s=HEARTBEAT_S)
        self._line = Line(world.broker, name, wants=lambda topic: topic.channel.is_retained, hear=self._hear)
        self._line.open()

    def _hear(self, event: BusEvent) -> None:
        match event:
            case Connected():
                self.fleet.listen(self._kernel.now)
            case Disconnected():
                self.fleet.pause()
            case Cleared(topic=topic):
                self.fleet.forget(topic)
            case Received(message=ClientStatus() | ServerStatus() | ManagerStatus() as said, is_retained=is_retained):
                self.fleet.apply(said, now=self._kernel.now, is_retained=is_retained)
                self.fleet.expire(self._kernel.now)
            case _:
                pass


@dataclass(frozen=True)
class Fault:
    """One kind of trouble and how often it comes, relative to the others."""

    weight: float
    strike: Callable[["World"], None]


class World:
    """Everything of one schedule."""

    def __init__(self, seed: int, *, is_troubled: bool = True) -> None:
        self.seed = seed
        self.kernel = Kernel(seed)
        rng = self.kernel.rng
        self.is_troubled = is_troubled
        self.broker = Broker(self.kernel)
        self.broker.is_troubled = is_troubled
        self.database = Database()
        self.is_file_lease = rng.random() < 0.5
        self.server_disk = Disk(self.kernel)
        self.manager_disk = Disk(self.kernel)
        self.checkpoints: dict[str, int] = {}
        """Rounds done by run: a server that is launched again goes on from there."""
        self.serving: dict[str, Server] = {}
        self.managers: list[Manager] = []
        self._port = 40000
        self._servers: list[Server] = []
        self._num_runs = 0
        self._started: Counter[tuple[str, str, int]] = Counter()
        self._fired: dict[tuple[str, str, int], str] = {}
        self._outcomes: dict[str, tuple[RunOutcome | None, str | None]] = {}
        macs = [f"02:00:00:00:00:0{number}" for number in range(1, rng.randint(1, 3) + 1)]
        self.devices = [
            Device(self, mac, rng.choice([0.0, 1.0, -3 * YEAR_S, 2 * YEAR_S, -55 * YEAR_S])) for mac in macs
        ]
        self.watcher = Reader(self, "watch")

    # What the parts ask of their world

    def free_port(self) -> int:
        self._port += 1
        return self._port

    def will_delay(self) -> float | None:
        """A killed process is noticed at once, a vanished host late, a broker that dies with it never."""
        rng = self.kernel.rng
        return rng.choice([0.005, 0.005, rng.uniform(0.0, 20.0), None])

    def leader(self) -> Manager | None:
        leading = [each for each in self.managers if each.is_leading and each.term == self.database.term]
        return leading[0] if leading else None

    def server_exited(self, server: Server) -> None:
        leader = self.leader()
        if leader is not None and (server.run_id, server.launch) in self.database.launches:
            run_id, event = server.run_id, ServerExited(server.launch, server.exit_reason)
            self.kernel.soon(0.0, 1.0, lambda: leader.report(run_id, event))

    # What must never be

    def broken(self, sentence: str) -> None:
        story = "\n".join(list(self.kernel.story)[-MAX_STORY:])
        raise BrokenInvariantError(f"seed {self.seed}, at {self.kernel.now:.2f} s: {sentence}\n{story}")

    def training_starts(self, run_id: str, mac: str, attempt: int) -> None:
        self.kernel.note(f"{mac} training starts {run_id} attempt {attempt}")
        self._started[run_id, mac, attempt] += 1
        if self._started[run_id, mac, attempt] > 1:
            self.broken(f"G-1: {mac} trains {run_id} attempt {attempt} twice")

    def trigger_fires(self, run_id: str, action: FireTrigger) -> None:
        key = (run_id, action.client_mac, action.attempt)
        if self._fired.setdefault(key, action.instance) != action.instance:
            self.broken(f"G-6: {key} fired at {self._fired[key]} and at {action.instance}")

    def run_is_written(self, run: Run) -> None:
        ended = (run.outcome, run.reason)
        known = self._outcomes.get(run.run_id)
        if known is not None and known != ended:
            self.broken(f"G-3: run {run.run_id} ended as {known} and then as {ended}")
        if run.has_ended:
            self._outcomes[run.run_id] = ended
            if not run.reason:
                self.broken(f"G-3: run {run.run_id} ended as {run.outcome} without a reason")
        if run.run_id in self.database.runs and run not in self.database.load():
            self.broken(f"G-6: run {run.run_id} is not read as it was written")

    def _check(self) -> None:
        """After every step: a leader's runs end within their limit, and readers never go back."""
        leader = self.leader()
        if leader is None or leader.is_frozen:
            return
        for run in leader.ledger:
            if not run.has_ended and self.kernel.now - run.created_at > LIMITS.run_s + 5 and self._leads_long(leader):
                self.broken(f"G-3: run {run.run_id} outlives its limit")

    def _leads_long(self, leader: Manager) -> bool:
        return self.database.last_time > self.kernel.now - 3 and leader.term == self.database.term

    # The schedule

    def begin_run(self, num_rounds: int) -> str | None:
        """What a person does: ask the leading manager for a run. Refused while one is active."""
        leader = self.leader()
        if leader is None or leader.is_frozen or leader.ledger.active(TASK) is not None:
            return None
        self._num_runs += 1
        run_id = f"run-{self._num_runs}"
        wanted = self.kernel.rng.randint(1, len(self.devices)) if self.is_troubled else len(self.devices)
        spec = RunSpec(run_id=run_id, task_id=TASK, num_rounds=num_rounds, min_clients=wanted, limits=LIMITS)
        run = Run(spec=spec, created_at=self.kernel.now)
        self.database.write(leader.term, self.kernel.now, run)
        leader.ledger.add(run, b"")
        self.kernel.note(f"run {run_id} begins, {wanted} clients wanted")
        return run_id

    def play(self) -> None:
        """The whole schedule; raises where a guarantee is broken."""
        self.kernel.checks.append(self._check)
        self.managers.append(Manager(self))
        for device in self.devices:
            self.kernel.soon(0.0, 5.0, device.start)
        if self.is_troubled:
            self._schedule_trouble()
        else:
            self.kernel.after(5.5, lambda: self.begin_run(3))
        self.kernel.run_until(TROUBLE_S)
        self._make_quiet()
        self.kernel.run_until(TROUBLE_S + SETTLE_S)
        self._check_rest("after the trouble")
        last = self.begin_run(2)
        if last is None:
            self.broken("G-3: no run can be started after the trouble")
        newcomer = Reader(self, "newcomer")
        self.kernel.run_until(self.kernel.now + LAST_RUN_S)
        self._check_last(str(last))
        self._check_rest("at the end")
        self._check_readers(newcomer)

    def _schedule_trouble(self) -> None:
        rng = self.kernel.rng
        for _ in range(rng.randint(2, 4)):
            self.kernel.soon(3.0, TROUBLE_S, lambda: self.begin_run(rng.randint(1, 6)))
        weights = [fault.weight for fault in FAULTS]
        for fault in rng.choices(FAULTS, weights, k=rng.randint(0, 14)):
            self.kernel.soon(2.0, TROUBLE_S, lambda fault=fault: fault.strike(self))  # type: ignore[misc]
        for _ in range(5):
            self.kernel.soon(0.0, TROUBLE_S, self.broker.save)

    def _make_quiet(self) -> None:
        """Everything is started again and the network delivers from here on."""
        self.kernel.note("quiet")
        self.is_troubled = self.broker.is_troubled = False
        for manager in list(self.managers):
            manager.thaw()
        if not self.managers:
            self.managers.append(Manager(self))
        for device in self.devices:
            self.kernel.after(max(0.0, device.not_before - self.kernel.now), device.start)

    def _check_rest(self, when: str) -> None:
        leader = self.leader()
        if leader is None:
            self.broken(f"{when}: nobody leads")
            return
        for run in leader.ledger:
            if not run.has_ended:
                self.broken(f"G-3 {when}: run {run.run_id} has not ended: {run}")
            self._check_members(run, when)
        for device in self.devices:
            assert device.daemon is not None
            if device.daemon.training is not None or device.daemon.client.facts.in_hand is not None:
                self.broken(f"G-3 {when}: {device.mac} still trains {device.daemon.client.facts.in_hand}")
        self._check_views(leader.fleet, f"the manager {when}", confirmed=True)
        self._check_views(self.watcher.fleet, f"a reader {when}", confirmed=True)

    def _check_members(self, run: Run, when: str) -> None:
        """G-2: a client whose journal says that it finished is known to have finished."""
        for device in self.devices:
            member = run.members.get(device.mac)
            for answered in device.disk.facts.answers:
                if answered.run_id != run.run_id or answered.outcome is not Outcome.FINISHED:
                    continue
                if member is None or member.status is not MemberCondition.FINISHED:
                    self.broken(f"G-2 {when}: {device.mac} finished {run.run_id}, the manager says {member}")

    def _check_last(self, run_id: str) -> None:
        leader = self.leader()
        run = leader.ledger.get(run_id) if leader is not None else None
        if run is None or run.outcome is not RunOutcome.COMPLETED:
            self.broken(f"G-3: in the quiet {run_id} did not complete: {run}")

    def _check_readers(self, newcomer: Reader) -> None:
        self._check_views(newcomer.fleet, "a newcomer", confirmed=True)
        for device in self.devices:
            assert device.daemon is not None
            kept = self.broker.retained.get(topics.client_status(TASK, device.mac))
            if not isinstance(kept, ClientStatus) or not _says_the_same(kept, device):
                self.broken(f"G-4: the broker keeps {kept} of {device.mac}")
        leader = self.leader()
        kept = self.broker.retained.get(topics.manager_status())
        if leader is None or not isinstance(kept, ManagerStatus) or kept.term != leader.term:
            self.broken(f"G-4: the broker keeps {kept} of the manager")

    def _check_views(self, fleet: Fleet, who: str, *, confirmed: bool) -> None:
        fleet.expire(self.kernel.now)
        for device in self.devices:
            view = fleet.client(TASK, device.mac)
            assert device.daemon is not None
            if view is None or view.presence is not Presence.ONLINE or not _says_the_same(view.status, device):
                truth = device.daemon.describe(Stamp(0, 0))
                self.broken(f"G-4: {who} believes {view} of {device.mac}, which is {truth}")


def _says_the_same(said: ClientStatus, device: Device) -> bool:
    assert device.daemon is not None
    truth = device.daemon.describe(Stamp(said.epoch, said.seq))
    return said == truth and said.status is not ClientCondition.CLIENT_OUT


# Trouble


def _device(world: World) -> Device:
    return world.kernel.rng.choice(world.devices)


def _kill_daemon(world: World) -> None:
    device = _device(world)
    if device.daemon is not None:
        device.daemon.die()
    world.kernel.soon(0.0, 40.0, device.start)


def _stop_daemon(world: World) -> None:
    device = _device(world)
    if device.daemon is not None:
        device.daemon.leave()
    world.kernel.soon(0.0, 40.0, device.start)


def _lose_folder(world: World) -> None:
    device = _device(world)
    if device.daemon is not None:
        device.daemon.die()
    device.lose_state()
    device.disk.skew_s = world.kernel.rng.choice([0.0, -10 * YEAR_S])
    world.kernel.soon(LONGEST_LEFTOVER_S, LONGEST_LEFTOVER_S + 30.0, device.start)


def _set_clock(world: World) -> None:
    """A device without a battery wakes up in 1970 and is set right later."""
    _device(world).disk.skew_s = world.kernel.rng.choice([0.0, -50 * YEAR_S, 1.5 * YEAR_S])


def _cut_device(world: World) -> None:
    device = _device(world)
    if device.daemon is not None:
        device.daemon.line.cut(world.will_delay())


def _fail_training(world: World) -> None:
    daemon = _device(world).daemon
    if daemon is not None and daemon.training is not None:
        daemon.training.ender(Outcome.FAILED, "ValueError: no data")()


def _kill_server(world: World) -> None:
    for server in list(world.serving.values()):
        server.exit("killed by SIGKILL")


def _cut_server(world: World) -> None:
    for server in list(world.serving.values()):
        server.line.cut(world.will_delay())


def _kill_manager(world: World) -> None:
    for manager in list(world.managers):
        manager.die()
    world.kernel.soon(0.0, 30.0, lambda: world.managers.append(Manager(world)) if not world.managers else None)


def _add_standby(world: World) -> None:
    if len(world.managers) < 2:
        world.managers.append(Manager(world))


def _freeze_manager(world: World) -> None:
    leader = world.leader()
    if leader is not None and not leader.is_frozen and not world.is_file_lease:
        leader.is_frozen = True
        _add_standby(world)
        world.kernel.soon(1.0, 60.0, leader.thaw)


def _cut_manager(world: World) -> None:
    leader = world.leader()
    if leader is not None and leader.line is not None:
        leader.line.cut(world.will_delay())


def _lose_database(world: World) -> None:
    for manager in list(world.managers):
        manager.die()
    world.database = Database()
    world.kernel.soon(1.0, 20.0, lambda: world.managers.append(Manager(world)) if not world.managers else None)


def _stop_run(world: World) -> None:
    leader = world.leader()
    active = leader.ledger.active(TASK) if leader is not None else None
    if leader is not None and active is not None:
        leader.report(active.run_id, StopRequested("asked for"))


def _stop_broker(how: str) -> Callable[[World], None]:
    def strike(world: World) -> None:
        world.kernel.note(f"broker {how}")
        world.broker.stop(how, world.kernel.rng.uniform(0.1, 40.0))

    return strike


def _lose_node(world: World) -> None:
    world.broker.lose_node()


FAULTS = [
    Fault(4, _kill_daemon),
    Fault(2, _stop_daemon),
    Fault(1, _lose_folder),
    Fault(1, _set_clock),
    Fault(4, _cut_device),
    Fault(1, _fail_training),
    Fault(3, _kill_server),
    Fault(2, _cut_server),
    Fault(3, _kill_manager),
    Fault(2, _add_standby),
    Fault(2, _freeze_manager),
    Fault(2, _cut_manager),
    Fault(0.5, _lose_database),
    Fault(1, _stop_run),
    Fault(2, _stop_broker("shutdown")),
    Fault(2, _stop_broker("killed")),
    Fault(1, _stop_broker("wiped")),
    Fault(1, _lose_node),
]
