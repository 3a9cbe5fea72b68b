"""The owner of a retained status on a real mosquitto: whatever happens, the broker ends up with the truth."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bus_helpers import (
    MAC,
    PATIENCE_S,
    Daemon,
    next_event,
    next_status,
    reader_of,
    retained_on,
    retained_status,
    say_raw,
    status,
)

from fedops_mqtt.bus import ConflictingInstanceError, Connected, EpochFile, MemoryEpochs, Mosquitto, Received
from fedops_mqtt.core.fencing import LAST_SEQ
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.core.ownership import latest_epoch
from fedops_mqtt.protocol import ClientCondition, ClientStatus, encode, topics

ONLINE, OUT = ClientCondition.ONLINE, ClientCondition.CLIENT_OUT
STATUSES = "fedops/v1/+/clients/+/status"
YEARS_AHEAD = 4_000_000_000_000


async def test_birth_and_goodbye(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with reader_of(broker, STATUSES) as reader:
        async with daemon.on(broker.url):
            await next_status(reader, lambda said: said.status is ONLINE)
        await next_status(reader, lambda said: (said.status, said.reason) == (OUT, "shutdown"))
    assert (await retained_status(broker, daemon.topic)).status is OUT


async def test_a_block_that_fails_publishes_out_with_reason_error(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)

    async def fail() -> None:
        async with daemon.on(broker.url):
            assert await daemon.owner.flush(PATIENCE_S)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert (await retained_status(broker, daemon.topic)).reason == "error"


async def test_an_unpublished_snapshot_is_published_before_the_goodbye(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with reader_of(broker, STATUSES) as reader:
        async with daemon.on(broker.url):
            assert await daemon.owner.flush(PATIENCE_S)
            daemon.rename("last")
        await next_status(reader, lambda said: (said.status, said.client_name) == (ONLINE, "last"))
        await next_status(reader, lambda said: said.status is OUT)


@asynccontextmanager
async def process_of(broker: Mosquitto, task_id: str) -> AsyncIterator[asyncio.subprocess.Process]:
    script = Path(__file__).with_name("daemon_process.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), broker.url, task_id, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE_S) == b"up\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_the_will_of_a_killed_process_is_delivered_and_retained(broker: Mosquitto, task_id: str) -> None:
    async with reader_of(broker, STATUSES) as reader, process_of(broker, task_id) as process:
        birth = await next_status(reader, lambda said: said.status is ONLINE)
        process.kill()
        will = await next_status(reader, lambda said: said.status is OUT)
    assert (will.reason, will.epoch, will.seq) == ("lost", birth.epoch, LAST_SEQ)
    assert (await retained_status(broker, topics.client_status(task_id, MAC))).reason == "lost"


async def test_a_changed_snapshot_is_published_and_echoes_are_ignored(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with reader_of(broker, STATUSES) as reader, daemon.on(broker.url):
        said = [await next_status(reader, lambda _: True)]
        for name in ("second", "third", "fourth"):
            daemon.rename(name)
            said.append(await next_status(reader, lambda _: True))
    assert [(each.client_name, each.seq) for each in said] == [("first", 1), ("second", 2), ("third", 3), ("fourth", 4)]


async def test_a_snapshot_that_fits_no_message_ends_no_owner_and_the_next_that_fits_is_published(
    broker: Mosquitto, task_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = Daemon(task_id)
    async with reader_of(broker, STATUSES) as reader:
        async with daemon.on(broker.url):
            await next_status(reader, lambda said: said.client_name == "first")
            daemon.agent = {"libraries": "x" * 70_000}
            daemon.rename("too large")
            async with asyncio.timeout(PATIENCE_S):
                while not any("bytes" in getattr(record, "problem", "") for record in caplog.records):  # noqa: ASYNC110 - what is not said can only be read in the log
                    await asyncio.sleep(0.01)
            daemon.agent = {}
            daemon.rename("fits again")
            await next_status(reader, lambda said: said.client_name == "fits again")
        await next_status(reader, lambda said: said.status is OUT)


async def test_a_heartbeat_repeats_the_status(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id, heartbeat_s=0.05)
    async with reader_of(broker, STATUSES) as reader, daemon.on(broker.url):
        said = [await next_status(reader, lambda _: True) for _ in range(3)]
    assert [each.seq for each in said] == [1, 2, 3]
    assert {(each.status, each.epoch) for each in said} == {(ONLINE, said[0].epoch)}


async def test_after_a_killed_broker_the_newest_snapshot_is_announced(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with daemon.on(broker.url):
        assert await daemon.owner.flush(PATIENCE_S)
        first = daemon.owner.epoch
        await broker.kill()
        daemon.rename("changed while away")
        await broker.start()
        async with reader_of(broker, STATUSES) as reader:
            said = await next_status(reader, lambda said: said.epoch > first)
        assert said.client_name == "changed while away"
        assert daemon.owner.epoch == said.epoch


async def test_after_an_orderly_broker_restart_new_subscribers_read_online_and_not_the_will(
    broker: Mosquitto, task_id: str
) -> None:
    daemon = Daemon(task_id)
    async with daemon.on(broker.url):
        assert await daemon.owner.flush(PATIENCE_S)
        await broker.restart()
        async with reader_of(broker, STATUSES) as reader:
            await next_status(reader, lambda said: said.status is ONLINE)
        assert (await retained_status(broker, daemon.topic)).status is ONLINE


async def test_a_late_will_is_repaired_for_new_subscribers(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with reader_of(broker, STATUSES) as reader, daemon.on(broker.url):
        birth = await next_status(reader, lambda said: said.status is ONLINE)
        late = status(task_id, OUT, instance=daemon.instance, epoch=birth.epoch - 1, seq=LAST_SEQ, reason="lost")
        await say_raw(broker, str(daemon.topic), encode(late), is_retained=True)
        repaired = await next_status(reader, lambda said: said.status is ONLINE)
        assert (repaired.epoch, repaired.seq > birth.seq) == (birth.epoch, True)
        assert (await retained_status(broker, daemon.topic)).status is ONLINE


async def test_a_topic_that_another_client_clears_is_published_again(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with reader_of(broker, STATUSES) as reader, daemon.on(broker.url):
        await next_status(reader, lambda said: said.status is ONLINE)
        await reader.publish(daemon.topic, None)
        await next_status(reader, lambda said: said.status is ONLINE)


async def test_a_client_that_lost_its_state_and_its_clock_is_accepted_again(broker: Mosquitto, task_id: str) -> None:
    epochs = MemoryEpochs()
    daemon = Daemon(task_id, epochs=epochs)
    before = status(task_id, OUT, instance="00-from-before", epoch=YEARS_AHEAD, seq=LAST_SEQ, reason="lost")
    await say_raw(broker, str(daemon.topic), encode(before), is_retained=True)
    async with reader_of(broker, STATUSES) as reader, daemon.on(broker.url):
        said = await next_status(reader, lambda said: said.epoch > YEARS_AHEAD)
        assert said.status is ONLINE
        assert epochs.load() > YEARS_AHEAD
    assert (await retained_status(broker, daemon.topic)).epoch > YEARS_AHEAD


async def test_a_late_will_from_before_with_a_higher_epoch_is_stood_above(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with reader_of(broker, STATUSES) as reader, daemon.on(broker.url):
        await next_status(reader, lambda said: said.status is ONLINE)
        late = status(task_id, OUT, instance="00-from-before", epoch=YEARS_AHEAD, seq=LAST_SEQ, reason="lost")
        await say_raw(broker, str(daemon.topic), encode(late), is_retained=True)
        assert (await next_status(reader, lambda said: said.epoch > YEARS_AHEAD)).status is ONLINE


async def test_no_claimed_stamp_locks_the_owner_out(broker: Mosquitto, task_id: str) -> None:
    """Live and alive, in another name or in ours: what no clock shows is refused, what is possible is stood above."""
    daemon = Daemon(task_id)
    topic = str(daemon.topic)
    fleet = Fleet()
    fleet.listen(0)
    async with reader_of(broker, STATUSES) as reader, daemon.on(broker.url):
        birth = await next_status(reader, lambda said: said.status is ONLINE)
        fleet.apply(birth, now=0, is_retained=False)
        claims = [
            birth.model_copy(update={"instance": "00-older", "epoch": 2**63 - 1}),
            birth.model_copy(update={"instance": "00-older", "epoch": latest_epoch(time.time_ns() // 1_000_000)}),
            birth.model_copy(update={"seq": LAST_SEQ - 1}),
        ]
        for name, claim in enumerate(claims):
            claim = claim.model_copy(update={"epoch": max(claim.epoch, daemon.owner.epoch), "client_name": "claimed"})
            await say_raw(broker, topic, encode(claim), is_retained=True)
            daemon.rename(str(name))
            while fleet.clients[task_id, MAC].status.client_name != str(name):
                fleet.apply(await next_status(reader, lambda _: True), now=0, is_retained=False)
        assert (await retained_status(broker, daemon.topic)).client_name == "2"


async def test_an_epoch_file_keeps_epochs_growing_over_restarts(
    broker: Mosquitto, task_id: str, tmp_path: Path
) -> None:
    file = EpochFile(tmp_path / "state" / "epoch")
    file.save(YEARS_AHEAD)
    daemon = Daemon(task_id, epochs=file)
    async with daemon.on(broker.url):
        assert await daemon.owner.flush(PATIENCE_S)
        assert daemon.owner.epoch == YEARS_AHEAD + 1 == file.load()


async def end_of(daemon: Daemon, url: str, client_id: str | None) -> ConflictingInstanceError:
    try:
        async with daemon.on(url, client_id=client_id):
            await asyncio.Event().wait()
    except ConflictingInstanceError as error:
        return error
    raise AssertionError("the block ended by itself")


@pytest.mark.parametrize("client_id", ["the-identity", None])
async def test_of_two_daemons_with_one_identity_the_older_ends(
    broker: Mosquitto, task_id: str, client_id: str | None
) -> None:
    """With one client id the broker evicts them in turn, and neither ever sees a live word of the other."""
    older = Daemon(task_id)
    async with asyncio.TaskGroup() as group, reader_of(broker, STATUSES) as reader:
        end = group.create_task(end_of(older, broker.url, client_id))
        await next_status(reader, lambda said: said.instance == older.instance)
        newer = await later_than(older)
        async with newer.on(broker.url, client_id=client_id):
            error = await asyncio.wait_for(end, PATIENCE_S)
            assert (error.instance, error.conflicting_instance) == (older.instance, newer.instance)
            last = await next_status(reader, lambda said: said.epoch >= newer.owner.epoch and said.status is ONLINE)
            assert last.instance == newer.instance
            assert await newer.owner.flush(PATIENCE_S)
            newer.rename("alone")
            assert await newer.owner.flush(PATIENCE_S)
            assert (await retained_status(broker, newer.topic)).client_name == "alone"


async def later_than(older: Daemon) -> Daemon:
    """Return a daemon that started at least 1 ms later; instances of the same millisecond sort by chance."""
    newer = Daemon(older.task_id)
    while newer.instance[:12] <= older.instance[:12]:
        await asyncio.sleep(0.001)
        newer = Daemon(older.task_id)
    return newer


async def test_a_conflicting_instance_with_a_clock_behind_is_still_the_newer(broker: Mosquitto, task_id: str) -> None:
    older = Daemon(task_id, epochs=MemoryEpochs(YEARS_AHEAD))
    async with asyncio.TaskGroup() as group, reader_of(broker, STATUSES) as reader:
        end = group.create_task(end_of(older, broker.url, None))
        await next_status(reader, lambda said: said.status is ONLINE)
        newer = await later_than(older)
        async with newer.on(broker.url):
            assert (await asyncio.wait_for(end, PATIENCE_S)).conflicting_instance == newer.instance
            said = await next_status(reader, lambda said: said.instance == newer.instance and said.epoch > YEARS_AHEAD)
            assert said.status is ONLINE


async def test_garbage_on_the_own_topic_is_replaced_by_the_truth(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with reader_of(broker, STATUSES) as reader, daemon.on(broker.url):
        birth = await next_status(reader, lambda said: said.status is ONLINE)
        await say_raw(broker, str(daemon.topic), b"garbage", is_retained=True)
        await next_status(reader, lambda said: said.seq > birth.seq)
        assert (await retained_status(broker, daemon.topic)).status is ONLINE


async def test_a_broker_that_was_never_there_does_not_hold_up_the_exit(task_id: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async with Daemon(task_id).on("mqtt://127.0.0.1:1"):
            pass


async def test_a_broker_that_hangs_does_not_hold_up_the_exit(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with asyncio.timeout(PATIENCE_S):
        async with daemon.on(broker.url):
            assert await daemon.owner.flush(PATIENCE_S)
            broker.pause()
        broker.resume()
    async with reader_of(broker, STATUSES) as reader:
        # By its goodbye or, where the broker first finds the connection gone, by its will.
        await next_status(reader, lambda said: said.status is OUT)


async def test_a_retired_topic_stays_cleared(broker: Mosquitto, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with daemon.on(broker.url):
        assert await daemon.owner.flush(PATIENCE_S)
    async with reader_of(broker, STATUSES) as reader:
        await next_event(reader, Received)
        await reader.publish(daemon.topic, None)
    assert await retained_on(broker, daemon.topic) is None


async def test_two_owners_on_their_own_topics_do_not_disturb_each_other(broker: Mosquitto, task_id: str) -> None:
    async with reader_of(broker, STATUSES) as reader:
        one, two = Daemon(f"{task_id}-1"), Daemon(f"{task_id}-2")
        async with one.on(broker.url) as connection, two.on(broker.url):
            assert await one.owner.flush(PATIENCE_S)
            assert await two.owner.flush(PATIENCE_S)
            await connection.reconnect()
            await next_event(connection, Connected)
            await next_event(connection, Connected)
            two.rename("end")
            await next_status(reader, lambda said: said.client_name == "end")
        assert isinstance(await retained_status(broker, two.topic), ClientStatus)
