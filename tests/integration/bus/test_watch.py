"""The public API on a real mosquitto: what is true now, then each change, whatever the network does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from itertools import count

import pytest
from bus_helpers import MAC, PATIENCE_S, QUICK, next_event, reader_of, status

import fedops_mqtt
from fedops_mqtt.bus import BusEvent, Cleared, Connected, ConnectError, Disconnected, Dropped, Mosquitto
from fedops_mqtt.bus.fleet_view import FleetView, Record, client_record
from fedops_mqtt.core.fencing import LAST_SEQ
from fedops_mqtt.core.fleet import Presence
from fedops_mqtt.protocol import ClientCondition, ClientMetrics, ClientStatus, Message, topics, utc_now
from fedops_mqtt.runtime.background import alongside


async def take(messages: AsyncIterator[Message], num: int) -> list[Message]:
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(messages) for _ in range(num)]


async def test_retained_messages_come_first_then_new_ones(broker: Mosquitto, task_id: str) -> None:
    topic = topics.client_status(task_id, MAC)
    first, second = status(task_id, seq=1), status(task_id, seq=2)
    numbers = ClientMetrics(kind="round", task_id=task_id, client_mac=MAC, instance="a", at=utc_now())
    async with reader_of(broker) as writer, fedops_mqtt.connect(broker.url) as bus:
        await writer.publish(topic, first)
        async with aclosing(bus.watch(task_id)) as messages:
            assert await take(messages, 1) == [first]
            await writer.publish(topic, second)
            await writer.publish(topics.client_metrics(task_id, MAC), numbers)
            assert await take(messages, 2) == [second, numbers]


async def test_a_late_will_never_appears(broker: Mosquitto, task_id: str) -> None:
    topic = topics.client_status(task_id, MAC)
    back = status(task_id, epoch=2)
    late = status(task_id, ClientCondition.CLIENT_OUT, epoch=1, seq=LAST_SEQ)
    end = status(task_id, epoch=2, seq=2)
    async with reader_of(broker) as writer, fedops_mqtt.connect(broker.url) as bus:
        await writer.publish(topic, back)
        async with aclosing(bus.watch(task_id)) as messages:
            assert await take(messages, 1) == [back]
            await writer.publish(topic, late)
            await writer.publish(topic, end)
            assert await take(messages, 1) == [end]


async def test_one_task_or_all_of_them(broker: Mosquitto, task_id: str) -> None:
    tasks = [f"{task_id}-a", f"{task_id}-b"]
    async with reader_of(broker) as writer, fedops_mqtt.connect(broker.url) as bus:
        for each in tasks:
            await writer.publish(topics.client_status(each, MAC), status(each))
        async with aclosing(bus.watch()) as everything, aclosing(bus.watch(tasks[1])) as one:
            assert sorted(task_of(each) for each in await take(everything, 2)) == tasks
            assert [task_of(each) for each in await take(one, 1)] == tasks[1:]


async def test_a_watch_goes_on_after_the_broker_was_killed(broker: Mosquitto, task_id: str) -> None:
    before, after = status(task_id, epoch=1), status(task_id, epoch=2)
    topic = topics.client_status(task_id, MAC)
    async with (
        fedops_mqtt.connect(broker.url, options=QUICK) as bus,
        aclosing(bus.watch(task_id)) as messages,
        reader_of(broker) as writer,
    ):
        await writer.publish(topic, before)
        assert await take(messages, 1) == [before]
        await broker.kill()
        await next_event(writer, Disconnected)
        await broker.start()
        await next_event(writer, Connected)
        await writer.publish(topic, after)
        assert await take(messages, 1) == [after]


async def until_cleared(events: AsyncIterator[BusEvent]) -> AsyncIterator[BusEvent]:
    async for event in events:
        yield event
        if isinstance(event, Cleared):
            return


async def test_events_report_connects_and_cleared_topics(broker: Mosquitto, task_id: str) -> None:
    topic = topics.client_status(task_id, MAC)
    async with fedops_mqtt.connect(broker.url) as bus, aclosing(bus.events(task_id)) as events:
        assert isinstance(await anext(events), Connected)
        await bus.publish(topic, status(task_id))
        await bus.publish(topic, None)
        async with asyncio.timeout(PATIENCE_S):
            told = [each async for each in until_cleared(events)]
    seen = [each for each in told if not isinstance(each, Dropped)]  # the broker's own count may come in between
    assert len(seen) == 2
    assert seen[1] == Cleared(topic)


async def test_a_broker_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(ConnectError, match=r"mqtt://127\.0\.0\.1:1: .*refused"):
        await fedops_mqtt.connect("mqtt://127.0.0.1:1").__aenter__()


async def test_a_broker_that_hangs_is_an_error_in_time(broker: Mosquitto) -> None:
    broker.pause()
    options = replace(QUICK, connect_timeout_s=0.2)
    with pytest.raises(ConnectError, match="no answer within"):
        await fedops_mqtt.connect(broker.url, options=options).__aenter__()
    broker.resume()


def task_of(message: Message) -> str:
    assert isinstance(message, ClientStatus)
    return message.task_id


async def test_a_fleet_shows_presence_by_lease_and_no_late_will(broker: Mosquitto, task_id: str) -> None:
    topic = topics.client_status(task_id, MAC)
    lively = status(task_id, epoch=2, name="device")
    async with (
        asyncio.timeout(PATIENCE_S),
        fedops_mqtt.connect(broker.url, options=QUICK) as bus,
        aclosing(bus.fleet(task_id)) as changes,
    ):
        await bus.publish(topic, lively)
        (view,) = (await anext(changes)).clients()
        assert view.status.client_name == "device"
        assert not view.is_out
        await bus.publish(topic, status(task_id, ClientCondition.CLIENT_OUT, epoch=1, reason="lost"))
        await bus.publish(topic, lively.model_copy(update={"heartbeat_s": 0.5, "seq": 100}))
        async for fleet in changes:
            (view,) = fleet.clients()
            if view.is_out:
                break
    assert (view.presence, view.out_reason) == (Presence.OUT, "silent")


async def test_a_lease_ends_though_others_publish_all_the_time(broker: Mosquitto, task_id: str) -> None:
    silent = status(task_id).model_copy(update={"heartbeat_s": 0.5})
    other = "02:00:00:00:00:99"

    async def publish_for_ever(bus: fedops_mqtt.Bus) -> None:
        for seq in count(1):
            conditions = (ClientCondition.ONLINE, ClientCondition.TRAIN_STARTED)
            await bus.publish(
                topics.client_status(task_id, other), status(task_id, conditions[seq % 2], mac=other, seq=seq)
            )

    async with (
        asyncio.timeout(PATIENCE_S),
        fedops_mqtt.connect(broker.url, options=QUICK) as bus,
        aclosing(bus.fleet(task_id)) as changes,
    ):
        await bus.publish(topics.client_status(task_id, MAC), silent)
        async with alongside(publish_for_ever(bus), name="busy client"):
            async for fleet in changes:
                known = fleet.fleet.client(task_id, MAC)
                if known is not None and known.is_out:
                    break
    assert known.out_reason == "silent"


async def test_a_view_of_ones_own_is_kept_up_and_its_changes_are_yielded(broker: Mosquitto, task_id: str) -> None:
    view, topic = FleetView(), topics.client_status(task_id, MAC)
    numbers = ClientMetrics(
        kind="round", task_id=task_id, client_mac=MAC, instance="a", values={"loss": 0.5}, at=utc_now()
    )
    async with (
        asyncio.timeout(PATIENCE_S),
        fedops_mqtt.connect(broker.url) as bus,
        aclosing(bus.changes(view, task_id)) as batches,
    ):
        assert await anext(batches) == [{"kind": "bus", "status": "connected"}]
        await bus.publish(topics.client_metrics(task_id, MAC), numbers)
        await bus.publish(topic, status(task_id))
        (change,) = await next_changes(batches)
        assert change == client_record(view, view.clients()[0])
        assert change["metrics"] == {"loss": 0.5}
        await bus.publish(topic, None)
        (change,) = await next_changes(batches)
    assert (change["client_mac"], change["status"]) == (MAC, "forgotten")
    assert view.clients() == []


async def next_changes(batches: AsyncIterator[list[Record]]) -> list[Record]:
    """Return the next batch that changed something: the broker's own count may come in between."""
    while not (changes := await anext(batches)):
        pass
    return changes
