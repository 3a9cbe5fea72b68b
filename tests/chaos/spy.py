"""Hears everything that is said about one task, can say it again much later, and can talk nonsense.

It speaks MQTT with aiomqtt itself: a stranger is not bound to say only what our own connection lets pass.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiomqtt

from fedops_mqtt.protocol import ProtocolError, mac_to_level, parse_topic
from fedops_mqtt.runtime.background import alongside

_MAX_HEARD = 3000
_RETRY_S = 0.5
_MAX_GARBAGE_BYTES = 2000


class Spy:
    """One stranger at a broker without access control."""

    def __init__(self, url: str, task_id: str) -> None:
        self._address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        self._task_id = task_id
        self._heard: deque[tuple[str, bytes]] = deque(maxlen=_MAX_HEARD)

    async def listen(self) -> None:
        """Hear, for ever, as long as there is a broker."""
        while True:
            try:
                async with aiomqtt.Client(*self._address, timeout=4) as client:
                    await client.subscribe(f"fedops/v1/{self._task_id}/#", qos=1)
                    async for message in client.messages:
                        self._heard.append((message.topic.value, message.payload))
            except aiomqtt.MqttError:
                await asyncio.sleep(_RETRY_S)

    async def replay(self, chance: random.Random, *, count: int) -> None:
        """Say some of what was heard once more, retained where it was retained."""
        chosen = chance.sample(list(self._heard), k=min(count, len(self._heard)))
        await self._publish([(topic, payload, _is_retained(topic)) for topic, payload in chosen])

    async def garbage(self, chance: random.Random, macs: Sequence[str], *, count: int) -> None:
        """Say what nobody can read, wherever somebody of the task listens; nothing of it stays at the broker."""
        clients = [f"clients/{mac_to_level(mac)}/{leaf}" for mac in macs for leaf in ("status", "start", "stop")]
        places = [*clients, "server/status", "server/metrics", "runs/none", "clients/nobody/status"]
        heard = [payload for _, payload in self._heard] or [b"{}"]
        nonsense = [_mangled(chance, chance.choice(heard)) for _ in range(count)]
        await self._publish([(f"fedops/v1/{self._task_id}/{chance.choice(places)}", each, False) for each in nonsense])

    async def _publish(self, words: Sequence[tuple[str, bytes, bool]]) -> None:
        try:
            async with aiomqtt.Client(*self._address, timeout=4) as client:
                for topic, payload, is_retained in words:
                    await client.publish(topic, payload, qos=1, retain=is_retained, timeout=4)
        except aiomqtt.MqttError:
            pass  # the broker is in trouble of its own


def _mangled(chance: random.Random, payload: bytes) -> bytes:
    """Return random bytes, or a real message that broke on its way."""
    if not payload or chance.random() < 0.5:
        return chance.randbytes(chance.randrange(_MAX_GARBAGE_BYTES))
    cut = chance.randrange(len(payload))
    return payload[:cut] + chance.randbytes(3) + payload[cut + 3 :]


def _is_retained(topic: str) -> bool:
    try:
        return parse_topic(topic).channel.is_retained
    except ProtocolError:
        return False


@asynccontextmanager
async def spying(url: str, task_id: str) -> AsyncIterator[Spy]:
    """Listen in a task of its own while the block runs."""
    spy = Spy(url, task_id)
    async with alongside(spy.listen(), name="spy"):
        yield spy
