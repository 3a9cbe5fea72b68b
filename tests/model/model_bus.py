"""Time and a broker as a model: everything random comes from one seed, nothing waits.

The broker does what real ones were seen to do: it delays, delivers twice, loses what is under way, sends wills late or
never, and comes back with what it last saved, with all, or with nothing.
"""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from random import Random

from fedops_mqtt.bus.events import BusEvent, Cleared, Connected, Disconnected, Received
from fedops_mqtt.protocol import Message, Topic

Deed = Callable[[], None]
Will = tuple[Topic, Message]

SLOW_S = 8.0
"""The longest that a message takes which the network did not lose."""
LOST_DOWN = 0.03
"""Share of what the broker delivers that does not arrive: `subscribe_qos = 0`, or a full queue."""


class Kernel:
    """Deeds in the order of their time; `history` keeps the last things that happened, for people."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.rng = Random(seed)
        self.history: deque[str] = deque(maxlen=600)
        self.checks: list[Deed] = []
        self._deeds: list[tuple[float, int, Deed]] = []
        self._numbers = count()

    def after(self, delay_s: float, deed: Deed) -> None:
        heapq.heappush(self._deeds, (self.now + max(0.0, delay_s), next(self._numbers), deed))

    def soon(self, least_s: float, most_s: float, deed: Deed) -> None:
        self.after(self.rng.uniform(least_s, most_s), deed)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def note(self, sentence: str) -> None:
        self.history.append(f"{self.now:8.2f}  {sentence}")

    def run_until(self, end_s: float) -> None:
        while self._deeds and self._deeds[0][0] <= end_s:
            self.now, _, deed = heapq.heappop(self._deeds)
            deed()
            for check in self.checks:
                check()
        self.now = end_s


class Session:
    """One CONNECT: what the broker believes of it and what its owner believes may differ for a while."""

    def __init__(self, line: "Line", will: Will | None) -> None:
        self.line = line
        self.will = will
        self.is_at_broker = True
        self.is_at_client = True
        self._arrives_at: dict[tuple[str, Topic], float] = {}

    def in_order(self, way: str, topic: Topic, delay_s: float) -> float:
        """MQTT orders the messages of one topic (MQTT 5, 4.6), not those of two."""
        now = self.line.kernel.now
        at = max(now + delay_s, self._arrives_at.get((way, topic), 0.0))
        self._arrives_at[way, topic] = at
        return at - now


class Broker:
    """What is retained, who is connected, and every way in which that goes wrong."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.is_up = True
        self.is_troubled = True
        """While True messages are late, come twice or are lost; False is the quiet in which the truth must show."""
        self.retained: dict[Topic, Message] = {}
        self._saved: dict[Topic, Message] = {}
        self.sessions: list[Session] = []

    def save(self) -> None:
        self._saved = dict(self.retained)

    def delay(self) -> float:
        rng = self.kernel.rng
        if not self.is_troubled or rng.random() < 0.9:
            return rng.uniform(0.001, 0.02)
        return rng.uniform(0.02, SLOW_S)

    def admit(self, session: Session) -> None:
        """One session a client id: who had it is thrown off, with its will or without (MQTT 3.1.1 and 5 differ)."""
        for other in [each for each in self.sessions if each.line.client_id == session.line.client_id]:
            self.lose(other, will_after_s=0.0 if self.kernel.chance(0.7) else None)
        self.sessions.append(session)
        for topic, message in list(self.retained.items()):
            self._deliver(session, topic, message, is_retained=True)

    def lose(self, session: Session, *, will_after_s: float | None) -> None:
        """The broker gives a session up; its owner may need longer to notice."""
        if not session.is_at_broker:
            return
        session.is_at_broker = False
        self.sessions.remove(session)
        self.kernel.soon(0.0, 6.0, session.line.noticer(session))
        if session.will is not None and will_after_s is not None:
            will = session.will
            self.kernel.after(will_after_s, lambda: self.take(*will) if self.is_up else None)

    def take(self, topic: Topic, message: Message | None) -> None:
        """A message is here: keep it where its topic says so, and pass it on."""
        if not self.is_up:
            return
        if topic.channel.is_retained and message is None:
            self.retained.pop(topic, None)
        elif topic.channel.is_retained and message is not None:
            self.retained[topic] = message
        for session in list(self.sessions):
            self._deliver(session, topic, message, is_retained=False)

    def stop(self, how: str, down_s: float) -> None:
        """Restart as mosquitto does: `shutdown` says the wills of the living, `killed` and `wiped` say nothing."""
        sessions = list(self.sessions)
        for session in sessions:
            if how == "shutdown" and session.will is not None:
                self.take(*session.will)
        self.is_up = False
        for session in sessions:
            self.lose(session, will_after_s=None)
        if how == "killed":
            self.retained = dict(self._saved)
        elif how == "wiped":
            self.retained = {}
        self.kernel.after(down_s, self._come_back)

    def lose_node(self) -> None:
        """A node of a clustered broker dies: its clients are cut off and their wills never come."""
        for session in [each for each in self.sessions if self.kernel.chance(0.4)]:
            self.lose(session, will_after_s=None)

    def _come_back(self) -> None:
        self.is_up = True
        self.kernel.note("broker is up")

    def _deliver(self, session: Session, topic: Topic, message: Message | None, *, is_retained: bool) -> None:
        if not session.line.wants(topic):
            return
        event: BusEvent = (
            Cleared(topic) if message is None else Received(topic=topic, message=message, is_retained=is_retained)
        )

        def arrive() -> None:
            if session.is_at_client:
                session.line.receive(event)

        if self.is_troubled and self.kernel.chance(LOST_DOWN):
            return
        self.kernel.after(session.in_order("down", topic, self.delay()), arrive)
        if self.is_troubled and self.kernel.chance(0.05):
            self.kernel.soon(0.0, 2 * SLOW_S, arrive)


class Line:
    """A connection that comes back by itself, as `bus.Connection` is to its owner."""

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        *,
        wants: Callable[[Topic], bool],
        receive: Callable[[BusEvent], None],
        make_will: Callable[[], Will | None] = lambda: None,
    ) -> None:
        self.broker = broker
        self.kernel = broker.kernel
        self.client_id = client_id
        self.wants = wants
        self.receive = receive
        self._make_will = make_will
        self._session: Session | None = None
        self._opened_at = 0.0
        self._is_closed = False

    @property
    def connected_at(self) -> float | None:
        """Since when this connection stands, as its owner believes; None without one."""
        return None if self._session is None else self._opened_at

    @property
    def stands(self) -> bool:
        """Whether both ends agree that there is a connection; its owner may believe so for a while longer."""
        return self._session is not None and self._session.is_at_broker

    @property
    def is_connected(self) -> bool:
        return self._session is not None

    def open(self) -> None:
        if self._is_closed or self._session is not None:
            return
        if not self.broker.is_up:
            self.kernel.soon(0.1, 3.0, self.open)
            return
        session = Session(self, self._make_will())
        self._session = session
        self._opened_at = self.kernel.now
        self.broker.admit(session)
        self.receive(Connected(protocol_version="5"))

    def publish(self, topic: Topic, message: Message | None, on_taken: Deed = lambda: None) -> bool:
        """Send it; False where there is no connection. A session that is cut may lose it or bring it late."""
        session = self._session
        if session is None:
            return False

        def arrive() -> None:
            if session.is_at_broker or self.kernel.chance(0.3):
                self.broker.take(topic, message)
                if self._session is session and self.broker.is_up:
                    on_taken()

        self.kernel.after(session.in_order("up", topic, self.broker.delay()), arrive)
        if self.broker.is_troubled and self.kernel.chance(0.03):
            self.kernel.soon(0.0, 4 * SLOW_S, lambda: self.broker.take(topic, message))
        return True

    def cut(self, will_after_s: float | None) -> None:
        """The network between us and the broker breaks."""
        if self._session is not None:
            self.broker.lose(self._session, will_after_s=will_after_s)

    def close(self, *, is_clean: bool, will_after_s: float | None = 0.005) -> None:
        """Our process leaves, or dies."""
        self._is_closed = True
        session, self._session = self._session, None
        if session is not None:
            session.is_at_client = False
            self.broker.lose(session, will_after_s=None if is_clean else will_after_s)

    def reconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.is_at_client = False
            self.broker.lose(session, will_after_s=None)
            self.receive(Disconnected("reconnecting"))
        self.kernel.soon(0.0, 0.5, self.open)

    def noticer(self, session: Session) -> Deed:
        def notice() -> None:
            if self._session is session:
                session.is_at_client = False
                self._session = None
                self.receive(Disconnected("lost"))
                self.kernel.soon(0.1, 3.0, self.open)

        return notice
