"""A broker restarts under many owners: each connects once, and publishes its status once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from bus_helpers import PATIENCE_S, status

from fedops_mqtt.bus import BusOptions, Connected, Connection, MemoryEpochs, Mosquitto, StatusOwner, new_instance
from fedops_mqtt.core.fencing import Stamp
from fedops_mqtt.protocol import ClientCondition, ClientStatus, topics
from fedops_mqtt.runtime.background import alongside

SIZE = 100
SPREAD_S = 4.0
"""Bound of the first wait, of which each draws its own (tests/unit/bus/test_address.py)."""
OPTIONS = BusOptions(backoff_initial_s=SPREAD_S, backoff_max_s=SPREAD_S, connect_timeout_s=PATIENCE_S)


class Member:
    """An owner that counts what it did since the storm began."""

    def __init__(self, task_id: str, number: int) -> None:
        self.task_id, self.mac = task_id, f"02:00:00:00:00:{number:02x}"
        self.instance = new_instance()
        self.num_said = 0
        self.num_connected = 0
        self.is_back = asyncio.Event()
        self.owner = StatusOwner(
            topic=topics.client_status(task_id, self.mac),
            instance=self.instance,
            make_snapshot=self._say_online,
            make_will=lambda stamp: self._status_at(stamp, ClientCondition.CLIENT_OUT),
            make_goodbye=None,
            epochs=MemoryEpochs(),
            heartbeat_s=600,
        )

    @asynccontextmanager
    async def on(self, url: str) -> AsyncIterator[None]:
        async with (
            self.owner.on_bus(url, client_id=self.mac, options=OPTIONS) as connection,
            alongside(self._note(connection), name=f"note-{self.mac}"),
        ):
            yield

    async def _note(self, connection: Connection) -> None:
        async for event in connection.events():
            if isinstance(event, Connected):
                self.num_connected += 1
                self.is_back.set()

    def _say_online(self, stamp: Stamp) -> ClientStatus:
        self.num_said += 1
        return self._status_at(stamp, ClientCondition.ONLINE)

    def _status_at(self, stamp: Stamp, condition: ClientCondition) -> ClientStatus:
        return status(
            self.task_id, condition, mac=self.mac, instance=self.instance, epoch=stamp.epoch, seq=stamp.seq
        )  # fmt: skip


async def all_back(members: list[Member]) -> None:
    async with asyncio.timeout(2 * PATIENCE_S):
        for member in members:
            await member.is_back.wait()
            assert await member.owner.flush(PATIENCE_S)


@pytest.mark.parametrize("is_orderly", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_a_restarted_broker_meets_each_client_once(task_id: str, is_orderly: bool) -> None:
    members = [Member(task_id, number) for number in range(SIZE)]
    async with Mosquitto() as broker, AsyncExitStack() as stack:
        for member in members:
            await stack.enter_async_context(member.on(broker.url))
        await all_back(members)
        for member in members:
            member.is_back.clear()
            member.num_connected = 0
            member.num_said = 0
        await (broker.terminate() if is_orderly else broker.kill())
        await broker.start()
        await all_back(members)
        assert {member.num_connected for member in members} == {1}
        assert max(member.num_said for member in members) <= 2  # its birth, and one repair of a late will
