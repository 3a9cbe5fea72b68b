"""A status owner that cannot publish waits for its connection, and does not try again and again meanwhile."""

import asyncio
import threading
from typing import Any, cast

from fedops_mqtt.bus import Connected, Connection, Disconnected, MemoryEpochs, NotConnectedError, Received, StatusOwner
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.protocol import ClientCondition, ClientStatus, topics, utc_now

MAC = "02:00:00:00:00:01"
TOPIC = topics.client_status("t", MAC)
TURNS = 200
"""Of the loop: an owner that tries in each would be seen."""


def status(stamp: Stamp, instance: str = "me", condition: ClientCondition = ClientCondition.ONLINE) -> ClientStatus:
    return ClientStatus(
        status=condition, task_id="t", client_mac=MAC, instance=instance, epoch=stamp.epoch, seq=stamp.seq,
        at=utc_now(),
    )  # fmt: skip


class Session:
    """Stands for a connection: counts what is asked of it."""

    def __init__(self, *, is_connected: bool) -> None:
        self.is_connected = is_connected
        self.published: list[Any] = []
        self.reconnects = 0

    async def publish(self, topic: Any, message: Any) -> None:
        self.published.append(message)
        if not self.is_connected:
            raise NotConnectedError("ended")

    async def reconnect(self, reason: str) -> None:
        self.reconnects += 1


class HeldEpochs(MemoryEpochs):
    """Saves nothing before it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[int] = []
        self.num_saving = 0
        self.may_go_on = threading.Event()

    def save(self, epoch: int) -> None:
        self.num_saving += 1
        assert self.may_go_on.wait(300)
        self.num_saving -= 1
        self.saved.append(epoch)
        super().save(epoch)


def owner(epochs: MemoryEpochs | None = None) -> StatusOwner:
    return StatusOwner(
        topic=TOPIC, instance="me", make_snapshot=status, make_will=status, make_goodbye=None,
        epochs=epochs or MemoryEpochs(), heartbeat_s=600.0,
    )  # fmt: skip


async def turn() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def until_published(session: Session, number: int) -> None:
    while len(session.published) < number:  # noqa: ASYNC110 - the stand-in counts, it wakes nobody
        await asyncio.sleep(0.001)


async def test_a_session_that_has_ended_is_asked_once_until_there_is_another() -> None:
    session, me = Session(is_connected=False), owner()
    async with me.publishing(cast(Connection, session)):
        me.take(Connected("5"))
        await until_published(session, 1)
        await turn()
        assert len(session.published) == 1
        me.take(Disconnected("ended"))
        session.is_connected = True
        me.take(Connected("5"))
        await until_published(session, 2)
        assert await me.flush(300.0)
        await turn()
    assert len(session.published) == 2


async def test_a_session_refused_by_chance_is_asked_again_while_it_stands() -> None:
    session, me = Session(is_connected=True), owner()

    async def refuse_once(topic: Any, message: Any) -> None:
        session.published.append(message)
        if len(session.published) == 1:
            raise NotConnectedError("just then")

    session.publish = refuse_once  # type: ignore[method-assign]
    async with me.publishing(cast(Connection, session)):
        me.take(Connected("5"))
        assert await me.flush(300.0)
    assert len(session.published) == 2


async def test_below_a_higher_epoch_nothing_is_published_before_the_next_connection() -> None:
    session, me = Session(is_connected=True), owner()
    await me.will()
    async with me.publishing(cast(Connection, session)):
        me.take(Connected("5"))
        assert await me.flush(300.0)
        above = status(Stamp(me.epoch + 1, 1), "before", ClientCondition.CLIENT_OUT)
        me.take(Received(TOPIC, above, True))
        while not session.reconnects:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        me.update()
        await turn()
        assert len(session.published) == 1
        me.take(Disconnected("reconnects"))
        assert (await me.will()).message.epoch > above.epoch
        me.take(Connected("5"))
        await until_published(session, 2)
    assert session.reconnects == 1


async def test_an_epoch_that_is_adopted_while_a_connection_takes_one_is_kept_after_it_and_above_it() -> None:
    epochs = HeldEpochs()
    session, me = Session(is_connected=True), owner(epochs)
    async with me.publishing(cast(Connection, session)):
        taking = asyncio.create_task(me.will())
        while not epochs.num_saving:  # noqa: ASYNC110 - a thread of the owner's
            await asyncio.sleep(0.001)
        above = status(Stamp(2**42, 1), "before", ClientCondition.CLIENT_OUT)
        me.take(Received(TOPIC, above, True))
        await asyncio.sleep(0.05)  # at least: the other thread has what it needs to save
        num_saving = epochs.num_saving
        epochs.may_go_on.set()
        await taking
        while not session.reconnects:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert num_saving == 1
    assert epochs.saved == [me.epoch, above.epoch]
    assert (await me.will()).message.epoch > above.epoch
