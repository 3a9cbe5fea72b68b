"""One seeded schedule over clients, a manager and its standby, FL servers and a broker, and what must never be.

Trouble first, then quiet: in the quiet everything is started again and the network delivers, and the truth must show.
"""

from model_bus import SLOW_S, Broker, Kernel, Line
from model_device import TASK, Device
from model_manager import Database, Manager
from model_owner import READER_HEARTBEAT_S, Disk
from model_server import Server
from model_trouble import FAULTS, YEAR_S
from model_truth import ReaderCheck, Truth

from fedops_mqtt.bus.events import BusEvent, Cleared, Connected, Disconnected, Received
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.core.fleet import Fleet, Presence
from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.core.run_member import ServerExited, StopRequested
from fedops_mqtt.manager.journal import JournaledRun
from fedops_mqtt.protocol import (
    ClientCondition,
    ClientStatus,
    ManagerStatus,
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
STOPPED_RUN_S = 25.0
"""And then a run that would go on for ever begins, is stopped after this long, and is over after as long again."""
LAST_RUN_S = 60.0
"""And then one more run has this long to complete."""
MAX_HISTORY = 160


class BrokenInvariantError(AssertionError):
    """Something happened that the guarantees exclude."""


class Reader:
    """Somebody who watches: `fedops-mqtt watch`, a dashboard."""

    def __init__(self, world: "World", name: str) -> None:
        self._kernel = world.kernel
        self.fleet = Fleet(default_heartbeat_s=READER_HEARTBEAT_S)
        self._line = Line(world.broker, name, wants=lambda topic: topic.channel.is_retained, receive=self._receive)
        self.reader_check = ReaderCheck(name=name, fleet=self.fleet, connected_at=lambda: self._line.connected_at)
        self._line.open()

    def _receive(self, event: BusEvent) -> None:
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
        self.truth = Truth(self.broken)
        self.database.on_write = self.truth.turn_is_written
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
        history = "\n".join(list(self.kernel.history)[-MAX_HISTORY:])
        raise BrokenInvariantError(f"seed {self.seed}, at {self.kernel.now:.2f} s: {sentence}\n{history}")

    def training_starts(self, run_id: str, mac: str, attempt: int) -> None:
        self.kernel.note(f"{mac} training starts {run_id} attempt {attempt}")
        self.truth.training_starts(run_id, mac, attempt)

    def run_is_written(self, run: Run) -> None:
        self.truth.run_is_written(run)
        if run.run_id in self.database.runs and run not in self.database.load():
            self.broken(f"G-6: run {run.run_id} is not read as it was written")

    def _check(self) -> None:
        """After every step: readers are right to think what they think, and a leader's runs end within their limit."""
        leaders = [manager for manager in self.managers if manager.is_leading]
        for reader in [self.watcher, *leaders]:
            reader.reader_check.check(self.kernel.now, self.broken)
        if not self.is_troubled and self.kernel.now > TROUBLE_S + SLOW_S:  # what was under way has arrived
            self._check_retained()
        leader = self.leader()
        if leader is None or leader.is_frozen:
            return
        for run in leader.open_runs:
            if not run.has_ended and self.kernel.now - run.created_at > LIMITS.run_s + 5 and self._leads_long(leader):
                self.broken(f"G-3: run {run.run_id} outlives its limit")

    def _check_retained(self) -> None:
        for device in self.devices:
            daemon = device.daemon
            if daemon is not None and daemon.line.stands and daemon.owner.is_published:
                kept = self.broker.retained.get(topics.client_status(TASK, device.mac))
                epoch = kept.epoch if isinstance(kept, ClientStatus) else None
                self.truth.check_retained(device.mac, epoch=daemon.owner.epoch, kept=epoch, now=self.kernel.now)

    def _leads_long(self, leader: Manager) -> bool:
        return self.database.last_time > self.kernel.now - 3 and leader.term == self.database.term

    # The schedule

    def begin_run(self, num_rounds: int) -> str | None:
        """What a person does: ask the leading manager for a run. Refused while one is active."""
        leader = self.leader()
        if leader is None or leader.is_frozen or leader.open_runs.active(TASK) is not None:
            return None
        self._num_runs += 1
        run_id = f"run-{self._num_runs}"
        wanted = self.kernel.rng.randint(1, len(self.devices)) if self.is_troubled else len(self.devices)
        spec = RunSpec(run_id=run_id, task_id=TASK, num_rounds=num_rounds, min_clients=wanted, limits=LIMITS)
        run = Run(spec=spec, created_at=self.kernel.now)
        self.database.write(leader.term, self.kernel.now, run)
        leader.open_runs.add(JournaledRun(run=run, secret=b""))
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
        self._play_stopped_run()
        last = self.begin_run(2)
        if last is None:
            self.broken("G-3: no run can be started after the trouble")
        newcomer = Reader(self, "newcomer")
        self.kernel.run_until(self.kernel.now + LAST_RUN_S)
        self._check_last(str(last))
        self._check_rest("at the end")
        self._check_readers(newcomer)

    def _play_stopped_run(self) -> None:
        """Nobody trains a closed run, though neither its server nor its clients would end by themselves."""
        run_id, leader = self.begin_run(10_000), self.leader()
        if run_id is None or leader is None:
            self.broken("G-3: no run can be started after the trouble")
            return
        self.kernel.run_until(self.kernel.now + STOPPED_RUN_S)
        if any(device.daemon is None or device.daemon.training is None for device in self.devices):
            self.broken(f"G-3: in the quiet not everybody trains {run_id}")
        leader.report(run_id, StopRequested("seen enough"))
        self.kernel.run_until(self.kernel.now + STOPPED_RUN_S)
        self._check_rest("after a stop")

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
        for run in leader.open_runs:
            if not run.has_ended:
                self.broken(f"G-3 {when}: run {run.run_id} has not ended: {run}")
            self.truth.check_members(run, when)
        for device in self.devices:
            assert device.daemon is not None
            if device.daemon.training is not None or device.daemon.client.facts.active_training is not None:
                self.broken(f"G-3 {when}: {device.mac} still trains {device.daemon.client.facts.active_training}")
        self._check_views(leader.fleet, f"the manager {when}", confirmed=True)
        self._check_views(self.watcher.fleet, f"a reader {when}", confirmed=True)

    def _check_last(self, run_id: str) -> None:
        leader = self.leader()
        run = leader.open_runs.get(run_id) if leader is not None else None
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
