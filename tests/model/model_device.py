"""A device in the model: its disk, its daemon around `core.client`, and its training process.

The daemon may die between any two of: facts on the disk, the deed, the status that says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from model_bus import SLOW_S, Kernel, Line
from model_owner import HEARTBEAT_S, Disk, Owner

from fedops_mqtt.bus.events import BusEvent, Received
from fedops_mqtt.core import client as core
from fedops_mqtt.core.client import Client, Identity, last_will, snapshot
from fedops_mqtt.core.client_state import (
    Action,
    ClientState,
    Event,
    PhaseReport,
    ServerMoved,
    ShutDown,
    ShutdownRequested,
    StopTraining,
    TrainingEnded,
)
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.core.ownership import new_instance
from fedops_mqtt.line.errors import LineRefusedError
from fedops_mqtt.protocol import (
    ClientStatus,
    Outcome,
    Phase,
    ReasonCode,
    RunStart,
    StartTrigger,
    StopTrigger,
    Topic,
    topics,
    utc_now,
)

if TYPE_CHECKING:
    from model_server import Server
    from model_world import World

TASK = "digits"
AT = utc_now()
JOIN_LIMIT_S = 20.0
REJOIN_LIMIT_S = 15.0
LONGEST_LEFTOVER_S = 4 * SLOW_S
"""Without folder and clock a daemon cannot tell a late word of its past from a newer rival: wait for the last one."""


class DeviceDisk(Disk):
    """The state folder of a device."""

    def __init__(self, kernel: Kernel, skew_s: float) -> None:
        super().__init__(kernel, skew_s)
        self.facts = ClientState()


class Device:
    """What stays when its daemon dies."""

    def __init__(self, world: World, mac: str, skew_s: float) -> None:
        self.world = world
        self.mac = mac
        self.disk = DeviceDisk(world.kernel, skew_s)
        self.daemon: Daemon | None = None
        self.not_before = 0.0

    def start(self) -> None:
        if self.daemon is None and self.world.kernel.now >= self.not_before:
            self.world.kernel.note(f"{self.mac} daemon starts")
            self.daemon = Daemon(self)
            self.daemon.open()

    def lose_state(self) -> None:
        """Somebody wiped the state folder while no daemon ran."""
        self.disk.facts = ClientState()
        self.disk.epoch = 0
        self.world.truth.disk_is_lost(self.mac)
        self.not_before = self.world.kernel.now + LONGEST_LEFTOVER_S


class Daemon:
    """One life of a daemon."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.world = device.world
        self.kernel = device.world.kernel
        disk = device.disk
        self.identity = Identity(
            task_id=TASK,
            client_mac=device.mac,
            client_name=device.mac,
            instance=new_instance(disk.unix_ms(), f"{self.kernel.rng.getrandbits(48):012x}", last_epoch=disk.epoch),
        )
        self.client: Client = core.restore(self.identity, disk.facts)
        disk.facts = self.client.facts
        self.training: Training | None = None
        self._mine: tuple[Topic, ...] = tuple(
            make(TASK, device.mac) for make in (topics.client_status, topics.client_start, topics.client_stop)
        )
        self.owner = Owner(
            self.kernel,
            disk,
            topic=self._mine[0],
            instance=self.identity.instance,
            make_snapshot=self.describe,
            make_will=lambda stamp: last_will(self.identity, stamp, at=AT, heartbeat_s=HEARTBEAT_S),
            on_conflict=lambda conflicting_instance: self.world.broken(
                f"{device.mac} yields to {conflicting_instance}, an instance of its own past"
            ),
        )
        self.line = Line(
            self.world.broker,
            device.mac,
            wants=lambda topic: topic in self._mine,
            receive=self.receive,
            make_will=self.owner.will,
        )
        self.owner.line = self.line

    @property
    def is_alive(self) -> bool:
        return self.device.daemon is self

    def open(self) -> None:
        self.line.open()

    def describe(self, stamp: Stamp) -> ClientStatus:
        return snapshot(self.client, stamp, at=AT, heartbeat_s=HEARTBEAT_S, agent={})

    def receive(self, event: BusEvent) -> None:
        if not self.is_alive:
            return
        match event:
            case Received(message=StartTrigger() | StopTrigger() as command, is_retained=False):
                self.apply(command)
            case _:
                self.owner.receive(event)

    def apply(self, event: Event) -> None:
        """The order of the real daemon: facts, deed, status; and it may die in between."""
        if not self.is_alive:
            return
        step = core.apply(self.client, event)
        if self._dies_here():
            return
        self.device.disk.facts = step.client.facts
        self._tell_the_truth(event)
        if self._dies_here():
            return
        changed, self.client = step.client != self.client, step.client
        self._carry_out(step.action)
        if not self._dies_here() and (changed or isinstance(event, StartTrigger)):
            self.owner.update()

    def _tell_the_truth(self, event: Event) -> None:
        """What is on the disk from here on must hold, whatever happens next."""
        truth, mac, before = self.world.truth, self.device.mac, self.client.facts
        match event:
            case StopTrigger() as stop if stop.term >= before.term:
                truth.stop_is_kept(stop.run_id, mac, stop.attempt)
            case TrainingEnded(outcome=Outcome.FINISHED) if before.active_training is not None:
                truth.finish_is_kept(before.active_training.run_id, mac)

    def _carry_out(self, action: Action | None) -> None:
        match action:
            case None:
                pass
            case RunStart() as start:
                self._start(start)
            case ServerMoved(server_ip=server_ip):
                if self.training is not None:
                    self.training.redirect(server_ip)
            case StopTraining(reason=reason, reason_code=code):
                if self.training is not None:
                    self.kernel.soon(0.0, 2.0, self.training.ender(Outcome.STOPPED, reason, code))
            case _:
                assert_never(action)

    def _dies_here(self) -> bool:
        if self.world.is_troubled and self.kernel.chance(0.004):
            self.die()
            return True
        return False

    def _start(self, start: RunStart) -> None:
        if self.training is not None:
            self.world.broken(f"{self.device.mac} would have two training processes")
        self.world.training_starts(start.run_id, self.device.mac, start.attempt)
        self.training = Training(self, start)

    def die(self) -> None:
        """`kill -9`, a power cut: the training process goes with it."""
        if not self.is_alive:
            return
        self.kernel.note(f"{self.device.mac} daemon dies")
        self.device.daemon = None
        if self.training is not None:
            self.training.die()
        self.line.close(is_clean=False, will_after_s=self.world.will_delay())

    def leave(self) -> None:
        """SIGTERM: what trains is interrupted, a goodbye is said."""
        if not self.is_alive:
            return
        self.kernel.note(f"{self.device.mac} daemon leaves")
        self.apply(ShutdownRequested())
        self.apply(ShutDown(reason="shutdown"))
        if self.is_alive:
            self.owner.say_now()
            self.device.daemon = None
            if self.training is not None:
                self.training.die()
            self.line.close(is_clean=True)


class Training:
    """One training process: it joins, is a member of the server's run, and ends one way or the other."""

    def __init__(self, daemon: Daemon, start: RunStart) -> None:
        self.daemon = daemon
        self.kernel = daemon.kernel
        self.world = daemon.world
        self.mac = daemon.device.mac
        self.run_id = start.run_id
        self.attempt = start.attempt
        self.address = start.server_ip
        self.session = f"{start.run_id}/{self.mac}/{start.attempt}/{self.kernel.rng.getrandbits(32)}"
        self.server: Server | None = None
        self.is_alive = True
        self._gives_up_at = self.kernel.now + JOIN_LIMIT_S
        self._has_joined = False
        self.kernel.soon(0.1, 1.5, self._try)

    def redirect(self, address: str) -> None:
        self.address = address
        if self.server is not None and self.server.address != address:
            self.server.loses(self)
            self.server_is_gone()

    def server_is_gone(self) -> None:
        self.server = None
        self._gives_up_at = self.kernel.now + REJOIN_LIMIT_S
        self.kernel.soon(0.1, 1.0, self._try)

    def die(self) -> None:
        self.is_alive = False
        if self.server is not None:
            self.kernel.soon(0.0, 3.0, lambda server=self.server: server.loses(self))  # type: ignore[misc]

    def ender(self, outcome: Outcome | None, reason: str, code: ReasonCode | None = None):  # type: ignore[no-untyped-def]
        def end() -> None:
            if not self.is_alive:
                return
            self.is_alive = False
            if self.server is not None:
                self.server.hears_end(self, outcome, reason, code)
            self.kernel.soon(0.0, 1.0, lambda: self._report(outcome, reason))

        return end

    def _report(self, outcome: Outcome | None, reason: str) -> None:
        if not self.daemon.is_alive:
            return
        self.daemon.training = None
        self.daemon.apply(TrainingEnded(outcome=outcome, reason=reason))

    def _try(self) -> None:
        if not self.is_alive or self.server is not None:
            return
        server = self.world.serving.get(self.address)
        if server is None:
            if self.kernel.now > self._gives_up_at:
                self.ender(Outcome.FAILED, f"no FL server answers at {self.address}")()
            else:
                self.kernel.soon(0.3, 2.0, self._try)
            return
        try:
            server.joins(self)
        except LineRefusedError as refusal:
            if refusal.code == "run over" and not self._has_joined:
                self.ender(None, "the run is over")()
            else:
                self.ender(refusal.outcome or Outcome.FAILED, refusal.reason)()
            return
        self._has_joined = True
        self.server = server
        self.daemon.apply(PhaseReport(phase=Phase.TRAINING, round=server.round))
