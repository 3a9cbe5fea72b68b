"""The owner of a retained status in the model: `bus.StatusOwner` without a loop, around the same `core.ownership`."""

from collections.abc import Callable

from model_bus import Kernel, Line, Will

from fedops_mqtt.bus.events import BusEvent, Cleared, Connected, Disconnected, Received
from fedops_mqtt.core import ownership
from fedops_mqtt.core.fencing import LAST_SEQ, Stamp
from fedops_mqtt.core.fleet import AnyStatus, reports_offline
from fedops_mqtt.core.ownership import Adopt, Decision, Ignore, Ownership, Repair, SeenStatus, Yield
from fedops_mqtt.protocol import Topic

HEARTBEAT_S = 10.0
READER_HEARTBEAT_S = 1.0
"""What readers assume of an owner that does not say its heartbeat: too short, so who leaves it out counts as silent."""
UNIX_MS = 1_760_000_000_000
"""The true time at the beginning of every schedule."""


class Disk:
    """What survives the process: an epoch, and the device's idea of the time."""

    def __init__(self, kernel: Kernel, skew_s: float = 0.0) -> None:
        self._kernel = kernel
        self.skew_s = skew_s
        self.epoch = 0

    def unix_ms(self) -> int:
        return max(0, int(UNIX_MS + (self._kernel.now + self.skew_s) * 1000))


class Owner:
    """Says a status, repeats it and defends it."""

    def __init__(
        self,
        kernel: Kernel,
        disk: Disk,
        *,
        topic: Topic,
        instance: str,
        make_snapshot: Callable[[Stamp], AnyStatus],
        make_will: Callable[[Stamp], AnyStatus],
        on_conflict: Callable[[str], None],
    ) -> None:
        self.topic = topic
        self.instance = instance
        self.line: Line | None = None
        self._kernel = kernel
        self._disk = disk
        self._make_snapshot = make_snapshot
        self._make_will = make_will
        self._on_conflict = on_conflict
        self._owned = Ownership(instance=instance)
        self._last_epoch = 0
        self._seq = 0
        self._due_at = float("inf")
        self.is_published = False
        """Whether the broker has the newest snapshot."""

    @property
    def epoch(self) -> int:
        return self._owned.epoch

    def will(self) -> Will:
        epoch = ownership.next_epoch(max(self._disk.epoch, self._last_epoch), self._disk.unix_ms())
        self._disk.epoch = self._last_epoch = epoch
        self._owned = self._owned.connected(epoch)
        self._seq = 0
        return self.topic, self._make_will(Stamp(epoch, LAST_SEQ))

    def update(self) -> None:
        """Say the snapshot soon."""
        self.is_published = False
        self._plan(0.0)

    def say_now(self) -> None:
        self._due_at = float("inf")
        if self.line is None or not self.line.is_connected:
            return
        self._seq += 1
        stamp = Stamp(self.epoch, self._seq)
        self.line.publish(self.topic, self._make_snapshot(stamp), lambda: self._taken(stamp))
        self._plan(HEARTBEAT_S)

    def _taken(self, stamp: Stamp) -> None:
        self.is_published = self.is_published or stamp == (self.epoch, self._seq)

    def receive(self, event: BusEvent) -> None:
        match event:
            case Connected():
                self.update()
            case Disconnected():
                self.is_published = False
            case Received(topic=topic, message=message, is_retained=is_retained) if topic == self.topic:
                assert not isinstance(message, type(None))
                self._judge(message, is_retained=is_retained)  # type: ignore[arg-type]
            case Cleared(topic=topic) if topic == self.topic:
                self._owned, decision = ownership.judge_cleared(self._owned, now=self._kernel.now)
                self._carry_out(decision)
            case _:
                pass

    def _judge(self, said: AnyStatus, *, is_retained: bool) -> None:
        word = SeenStatus(
            instance=said.instance, epoch=said.epoch, is_out=reports_offline(said), is_retained=is_retained,
            is_ahead=said.seq > self._seq,
        )  # fmt: skip
        self._owned, decision = ownership.judge(self._owned, word, now=self._kernel.now)
        self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Ignore():
                pass
            case Repair(at):
                self.is_published = False
                self._plan(at - self._kernel.now)
            case Adopt(epoch):
                self._disk.epoch = max(self._disk.epoch, epoch)
                self._last_epoch = max(self._last_epoch, epoch)
                if self.line is not None:
                    self.line.reconnect()
            case Yield(instance):
                self._on_conflict(instance)

    def _plan(self, delay_s: float) -> None:
        """Of several plans the earliest holds; saying something makes a new one."""
        at = self._kernel.now + max(0.0, delay_s)
        if at < self._due_at:
            self._due_at = at
            self._kernel.after(delay_s, lambda: self.say_now() if self._due_at == at else None)
