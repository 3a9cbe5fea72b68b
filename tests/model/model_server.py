"""An FL server in the model: a process with a status on the bus and a line, around `line.members`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_bus import Line
from model_device import AT, TASK, Training
from model_owner import HEARTBEAT_S, Owner

from fedops_mqtt.bus.events import BusEvent, Received
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.core.ownership import new_instance
from fedops_mqtt.line.errors import LineRefusedError
from fedops_mqtt.line.members import LineMember, Members
from fedops_mqtt.protocol import (
    Channel,
    ClientStatus,
    MemberCondition,
    Outcome,
    ReasonCode,
    ServerClient,
    ServerCondition,
    ServerStatus,
    topics,
)

if TYPE_CHECKING:
    from model_world import World

START_S = (0.5, 3.0)
ROUND_S = (1.0, 4.0)
SERVER_JOIN_LIMIT_S = 25.0
FLUSH_S = 10.0
_ENDED_AS = {
    Outcome.FINISHED: MemberCondition.FINISHED,
    Outcome.FAILED: MemberCondition.FAILED,
    Outcome.STOPPED: MemberCondition.STOPPED,
}


class Server:
    """One launch of a run's server."""

    def __init__(self, world: World, run_id: str, launch: int, *, min_clients: int, num_rounds: int) -> None:
        self.world = world
        self.kernel = world.kernel
        self.run_id = run_id
        self.launch = launch
        self.min_clients = min_clients
        self.num_rounds = num_rounds
        self.address = f"127.0.0.1:{world.free_port()}"
        self.condition = ServerCondition.STARTING
        self.reason: str | None = None
        self.round = world.checkpoints.get(run_id, 0)
        self.members = Members()
        self.is_alive = True
        self.exit_reason = ""
        self._trainings: dict[str, Training] = {}
        self._short_since = self.kernel.now
        self._is_closing = False
        self._stranger: ServerStatus | None = None
        self._topic = topics.server_status(TASK)
        instance = new_instance(world.server_disk.unix_ms(), f"{self.kernel.rng.getrandbits(48):012x}")
        self.owner = Owner(
            self.kernel,
            world.server_disk,
            topic=self._topic,
            instance=instance,
            make_snapshot=lambda stamp: self._status(stamp, self.condition, self.reason),
            make_will=lambda stamp: self._status(stamp, ServerCondition.SERVER_OUT, "lost", is_will=True),
            on_conflict=self._meet_conflicting_instance,
        )
        self.line = Line(
            world.broker,
            f"fl-server-{instance}",
            wants=lambda topic: topic == self._topic or topic.channel is Channel.CLIENT_STATUS,
            receive=self._receive,
            make_will=self.owner.will,
        )
        self.owner.line = self.line
        self.line.open()
        if self.kernel.chance(0.05) and world.is_troubled:
            self.kernel.soon(0.0, 5.0, lambda: self.exit("exit status 1: no such dataset"))
        self.kernel.soon(*START_S, self._be_ready)

    def _status(
        self, stamp: Stamp, condition: ServerCondition, reason: str | None, *, is_will: bool = False
    ) -> ServerStatus:
        has_address = condition is not ServerCondition.STARTING and not is_will
        return ServerStatus(
            instance=self.owner.instance, epoch=stamp.epoch, seq=stamp.seq, at=AT, heartbeat_s=HEARTBEAT_S,
            status=condition, reason=reason, task_id=TASK, run_id=self.run_id, launch=self.launch,
            server_ip=self.address if has_address else None, round=self.round, num_rounds=self.num_rounds,
            clients={} if is_will else {mac: _reported(member) for mac, member in self.members.by_mac.items()},
        )  # fmt: skip

    # The bus

    def _receive(self, event: BusEvent) -> None:
        if not self.is_alive:
            return
        match event:
            case Received(message=ClientStatus() as said):
                self._read_client(said)
            case Received(message=ServerStatus() as said) if said.instance != self.owner.instance:
                self._stranger = said
                if said.run_id == self.run_id and said.launch > self.launch:
                    self._be_replaced(f"launch {said.launch} has taken over")
        if self.is_alive:
            self.owner.receive(event)

    def _read_client(self, said: ClientStatus) -> None:
        last, member = said.last_run, self.members.by_mac.get(said.client_mac)
        if last is None or member is None or last.run_id != self.run_id or last.outcome is Outcome.FINISHED:
            return
        if member.attempt == last.attempt:
            self._drop(said.client_mac, last.outcome, last.reason or "as its daemon reported", last.reason_code)

    def _meet_conflicting_instance(self, conflicting_instance: str) -> None:
        other = self._stranger
        if other is None or other.run_id != self.run_id or other.launch >= self.launch:
            self._be_replaced(f"replaced by {conflicting_instance}")

    def _be_replaced(self, reason: str) -> None:
        self._close(Outcome.STOPPED, reason)
        self.exit(reason)

    # The line

    def joins(self, training: Training) -> None:
        if self._is_closing or self.condition is ServerCondition.STARTING:
            raise LineRefusedError(status=410, code="run over", reason="the run is over", outcome=None)
        mac, instance = training.mac, training.daemon.identity.instance
        self.members.check_join(mac, instance, training.attempt)
        evicted = self._trainings.get(mac)
        if evicted is not None and evicted is not training and evicted.is_alive:
            self.kernel.soon(0.0, 1.0, evicted.ender(Outcome.FAILED, "evicted"))
        self.members.join(mac, instance, training.attempt, training.session)
        self.members.attach(training.session)
        self._trainings[mac] = training
        self.owner.update()

    def loses(self, training: Training) -> None:
        if self.is_alive and self.members.detach(training.session, "connection lost"):
            self.owner.update()

    def hears_end(self, training: Training, outcome: Outcome | None, reason: str, code: ReasonCode | None) -> None:
        if self.is_alive and outcome is not None and self._trainings.get(training.mac) is training:
            self.members.end(training.mac, outcome, reason, code)
            self.owner.update()

    def _drop(self, mac: str, outcome: Outcome, reason: str, code: ReasonCode | None) -> None:
        if self.members.end(mac, outcome, reason, code):
            training = self._trainings.get(mac)
            if training is not None:
                self.kernel.soon(0.0, 1.0, training.ender(outcome, reason))
            self.owner.update()

    # The run

    def _be_ready(self) -> None:
        if not self.is_alive or self._is_closing:
            return
        self.condition = ServerCondition.READY
        self.world.serving[self.address] = self
        self._short_since = self.kernel.now
        self.owner.update()
        if self.round >= self.num_rounds:
            self.ends(ServerCondition.FINISHED, "all rounds were done by an earlier launch")
        else:
            self.kernel.soon(*ROUND_S, self._turn)

    def _turn(self) -> None:
        if not self.is_alive or self._is_closing:
            return
        present = sum(member.is_present for member in self.members.by_mac.values())
        if present >= self.min_clients:
            self._short_since = self.kernel.now
            self.condition = ServerCondition.RUNNING
            self.round += 1
            self.world.checkpoints[self.run_id] = self.round
            self.owner.update()
        elif self.kernel.now - self._short_since > SERVER_JOIN_LIMIT_S:
            self.ends(ServerCondition.FAILED, f"{present} of at least {self.min_clients} clients")
            return
        if self.round >= self.num_rounds:
            self.ends(ServerCondition.FINISHED, None)
        else:
            self.kernel.soon(*ROUND_S, self._turn)

    def ends(self, condition: ServerCondition, reason: str | None) -> None:
        if not self.is_alive or self._is_closing:
            return
        outcome = {ServerCondition.FINISHED: Outcome.FINISHED, ServerCondition.FAILED: Outcome.FAILED}
        self._close(outcome.get(condition, Outcome.STOPPED), reason or "all rounds done")
        self.condition, self.reason = condition, reason
        self.owner.update()
        self._leave(self.kernel.now + FLUSH_S)

    def _close(self, outcome: Outcome, reason: str) -> None:
        """Everybody present is told how it ended, the next time they ask."""
        self._is_closing = True
        for mac, member in list(self.members.by_mac.items()):
            training = self._trainings[mac]
            if member.outcome is None and member.is_present and training.is_alive:
                self.members.end(mac, outcome, reason)
                self.kernel.soon(0.0, 2.0, training.ender(outcome, reason))

    def _leave(self, at_latest: float) -> None:
        if not self.is_alive:
            return
        if self.owner.is_published or self.kernel.now >= at_latest:
            self.kernel.soon(1.0, 3.0, lambda: self.exit("exit status 0"))
        else:
            self.kernel.after(0.5, lambda: self._leave(at_latest))

    def terminate(self) -> None:
        """SIGTERM from its manager; SIGKILL after a grace."""
        self.kernel.soon(0.0, 1.0, lambda: self.ends(ServerCondition.STOPPED, "asked to end"))
        self.kernel.after(8.0, lambda: self.exit("killed by SIGKILL"))

    def exit(self, reason: str) -> None:
        """The process is gone, whichever way."""
        if not self.is_alive:
            return
        self.kernel.note(f"server {self.run_id}/{self.launch} is gone: {reason}")
        self.is_alive = False
        self.exit_reason = reason
        self.world.serving.pop(self.address, None)
        self.line.close(is_clean=reason == "exit status 0", will_after_s=self.world.will_delay())
        for training in self._trainings.values():
            if training.server is self and training.is_alive:
                training.server_is_gone()
        self.world.server_exited(self)


def _reported(member: LineMember) -> ServerClient:
    if member.outcome is not None:
        status = _ENDED_AS[member.outcome]
    else:
        status = MemberCondition.TRAINING if member.is_present else MemberCondition.LOST
    return ServerClient(
        status=status,
        attempt=member.attempt,
        phase=member.phase,
        round=member.round or 0,
        reason=member.reason,
        reason_code=member.reason_code,
    )
