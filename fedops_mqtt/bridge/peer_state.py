"""What the bridge knows of one FedOps client right now: its last `/online`, its last word, the door it is told to use.

The HTTP endpoints and the poller write here, the trainer reads and waits; it lives in one event loop.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fedops_mqtt.bridge.fedops_http_client import FedOpsHttpClient, OnlineAnswer
from fedops_mqtt.protocol import Outcome
from fedops_mqtt.training.pipe import MetricsReport


@dataclass(kw_only=True)
class PeerState:
    """One FedOps client. `peer` is None where a FedOps client manager stands before it, which polls and starts it."""

    name: str
    """How people and logs call it: its URL, or the MAC that its client manager registered."""
    peer: FedOpsHttpClient | None
    client_mac: str | None = None
    """Its MAC on the bus; None until it is known."""
    own_mac: str | None = None
    """The MAC that it says itself; another than `client_mac` where the bridge was told to use another."""
    client_name: str = ""
    task_id: str | None = None
    hosts: frozenset[str] = frozenset()
    """Where its requests come from, as far as that is known: addresses."""
    has_time_result: bool = False
    """It has reported how long its training took, which a FedOps client does only when that went well."""
    gl_model: int = 0
    """Number of the global model of the last start, which it asks for in its own (`/info/`)."""
    is_here: bool = False
    is_training: bool = False
    """What it says of itself: `client_start`."""
    server_ip: str | None = None
    """Where it says that it trains, or trained last."""
    has_failed: bool = False
    wanted: str | None = None
    """`host:port` of the FL server that it shall train with now; None when nothing is wanted of it."""
    started_at: float = 0.0
    report: Callable[[MetricsReport], None] | None = None
    """Takes numbers of the training in hand."""
    is_lost: bool = False
    """It did not answer any more when it was asked last."""
    hurry: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set where it should be asked now how it is."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition, repr=False)
    _word: Outcome | None = None

    @property
    def has_start_pending(self) -> bool:
        """True from the moment it is to be started until it has said that it trains."""
        return self.wanted is not None and not self.is_training

    def is_at(self, server_ip: str) -> bool:
        """Return whether it trains at this server already; only the port tells, a host may have several names."""
        return self.is_training and port_of(self.server_ip or "") == port_of(server_ip)

    async def note_online(self, answer: OnlineAnswer) -> None:
        """Take in what it says of itself; when it says that it trains no more, how it ended is in the same answer."""
        async with self._changed:
            was_training = self.is_training
            self.is_here, self.is_lost = True, False
            self.is_training = answer.is_training
            self.server_ip = answer.server_ip
            if was_training and not answer.is_training and self.wanted is not None and self._word is None:
                has_just_failed = answer.has_failed and not self.has_failed
                self._word = Outcome.FAILED if has_just_failed else Outcome.FINISHED
            self.has_failed = answer.has_failed
            self._changed.notify_all()

    async def note_registration(self, answer: OnlineAnswer) -> None:
        """Take in what its client manager says, who looks away while it trains and may have looked before it did."""
        async with self._changed:
            self.is_here = True
            if self.wanted is None or answer.is_training:
                self.is_training = answer.is_training
            self._changed.notify_all()

    async def note_asked(self) -> None:
        """It has asked for the port of its FL server: its client manager has started it."""
        async with self._changed:
            self.is_training = self.is_training or self.peer is None
            self._changed.notify_all()

    async def note_word(self, outcome: Outcome) -> None:
        """Take in `/trainFin` or `/trainFail`."""
        async with self._changed:
            self.is_training = False
            if self.wanted is not None:
                self._word = outcome
            self._changed.notify_all()

    async def note_lost(self) -> None:
        """It does not answer any more."""
        async with self._changed:
            self.is_lost = True
            self._changed.notify_all()

    async def note_departed(self) -> None:
        """It is not there any more."""
        async with self._changed:
            self.is_here = self.is_training = False
            self._changed.notify_all()

    async def want(self, server_ip: str | None) -> None:
        """Say where it shall train from now on; None: nowhere."""
        async with self._changed:
            self.wanted = server_ip
            self._word = None
            self.has_time_result = False
            self.started_at = time.monotonic()
            self._changed.notify_all()

    async def until_told(self) -> Outcome:
        """Wait for its word on how the training that is wanted ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._word is not None)
            assert self._word is not None
            return self._word

    async def until_told_or_lost(self) -> Outcome | None:
        """Wait for its word, or until it does not answer any more (None); it is asked at once."""
        self.hurry.set()
        async with self._changed:
            await self._changed.wait_for(lambda: self._word is not None or self.is_lost)
            return self._word

    async def until_idle(self) -> None:
        """Wait until it says that it does not train."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.is_training)

    async def until_training(self) -> None:
        """Wait until it says that it trains, or has already told how that ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.is_training or self._word is not None)


def port_of(server_ip: str) -> str:
    """Return the port of `host:port`."""
    return server_ip.rpartition(":")[2]
