"""A newcomer to a large fleet: the shipped brokers give it everybody, and one that drops is noticed and named."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path

import pytest
from ports import free_port
from secure_site import MANAGER, STANDBY, TASK, SecureSite, make_fleet
from terminals import at_a_terminal
from yard import TIMEOUT_S, Yard, eventually

from fedops_mqtt import AsyncManagerClient
from fedops_mqtt.bus import BusOptions, Connected, Connection, Mosquitto
from fedops_mqtt.protocol import Channel, ClientStatus, filter_for, topics, utc_now

pytestmark = pytest.mark.long

SIZE = 2_000
"""Twice what mosquitto keeps for a newcomer when nobody tells it otherwise."""
CRAMPED = {"max_queued_messages": "10", "sys_interval": "1"}
NUM_CRAMPED = 500
_AT_ONCE = 8
"""Fewer than the cramped broker keeps for one reader: what everybody says live is delivered."""


def mac_of(number: int) -> str:
    return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"


async def publish_statuses(connection: Connection, size: int, *, seq: int) -> None:
    """Say a status for everybody, a few at a time."""
    unsaid = iter(range(size))

    async def work() -> None:
        for number in unsaid:
            status = ClientStatus(
                instance="simulated", epoch=1, seq=seq, at=utc_now(), status="online", task_id=TASK,
                client_mac=mac_of(number), client_name="", heartbeat_s=600,
            )  # fmt: skip
            await connection.publish(topics.client_status(TASK, mac_of(number)), status)

    async with asyncio.TaskGroup() as group:
        for number in range(_AT_ONCE):
            group.create_task(work(), name=f"say-{number}")


@asynccontextmanager
async def a_fleet_of(size: int, url: str, options: BusOptions | None = None) -> AsyncIterator[Connection]:
    """Everybody's birth is retained when the block begins."""
    async with asyncio.timeout(TIMEOUT_S), Connection(url, options=options) as connection:
        await connection.wait_first_try()
        while not isinstance((await connection.drain())[0], Connected):
            pass
        await publish_statuses(connection, size, seq=1)
        yield connection


async def count_everybody(reader: Connection, size: int) -> int:
    """Return how many clients a newcomer was told of, once it has all of them or its patience ends."""
    seen: set[str] = set()
    while len(seen) < size and (events := await reader.drain(timeout_s=TIMEOUT_S / 2)):
        seen.update(str(event.topic) for event in events if hasattr(event, "message"))
    return len(seen)


async def test_the_broker_for_development_delivers_2000_clients_to_a_new_subscriber() -> None:
    everybody = [filter_for(Channel.CLIENT_STATUS, TASK)]
    async with (
        Mosquitto() as broker,
        a_fleet_of(SIZE, broker.url),
        Connection(broker.url, subscriptions=everybody) as reader,
    ):
        assert await count_everybody(reader, SIZE) == SIZE


@pytest.mark.parametrize("name", ["mosquitto.conf", "mosquitto.dynsec.conf"])
async def test_a_secured_broker_delivers_2000_clients_to_a_new_subscriber(name: str, tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    fleet.write_dynamic_security()
    async with Mosquitto(config=fleet.broker_folder / name) as broker:
        site = SecureSite(fleet, broker)
        async with (
            a_fleet_of(SIZE, site.url(MANAGER), site.options(MANAGER)),
            site.reading(STANDBY, filter_for(Channel.CLIENT_STATUS, TASK)) as reader,
        ):
            assert await count_everybody(reader, SIZE) == SIZE


async def test_watch_and_manager_report_that_a_broker_drops_messages(yard: Yard) -> None:
    port = free_port()
    async with Mosquitto(changes=CRAMPED) as broker, a_fleet_of(NUM_CRAMPED, broker.url):
        watch = await yard.start("watch", "--broker", broker.url)
        manager = await yard.start("manager", broker=broker.url, http=f"127.0.0.1:{port}", state_dir=yard.folder)
        said = "the broker dropped [0-9]+ messages: clients may be missing; raise max_queued_messages"
        await watch.until_printed(f'^bus status=dropping reason="{said}')
        await manager.until_printed(f"messages are lost at the broker.*{said}")
        async with AsyncManagerClient(f"http://127.0.0.1:{port}", timeout_s=TIMEOUT_S) as api:
            health = await api.health()
        assert health.problem is not None
        assert "raise max_queued_messages" in health.problem
        assert health.num_clients < NUM_CRAMPED


async def test_watch_at_a_terminal_shows_it_above_the_table_however_narrow() -> None:
    async with (
        Mosquitto(changes=CRAMPED) as broker,
        a_fleet_of(NUM_CRAMPED, broker.url),
        at_a_terminal("watch", "--broker", broker.url, lines=24, columns=80) as terminal,
    ):
        await terminal.until_shown("the broker dropped", "raise max_queued_messages", "no runs yet")


async def test_watch_reports_it_too_where_the_brokers_count_may_not_be_read(yard: Yard, tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite fedops/#\n")
    async with (
        Mosquitto(changes={**CRAMPED, "acl_file": str(acl)}) as broker,
        a_fleet_of(NUM_CRAMPED, broker.url) as fleet,
    ):
        watch = await yard.start("watch", "--broker", broker.url)
        await watch.until_printed("^client .*presence=unconfirmed")
        await publish_statuses(fleet, NUM_CRAMPED, seq=2)
        await watch.until_printed(
            '^bus status=dropping reason="[0-9]+ clients are present whose earlier statuses the broker dropped'
        )


async def test_no_dropped_message_is_reported_of_a_broker_that_keeps_everything(yard: Yard) -> None:
    async with Mosquitto(changes={"sys_interval": "1"}) as broker, a_fleet_of(NUM_CRAMPED, broker.url) as fleet:
        watch = await yard.start("watch", "--broker", broker.url)
        await eventually(lambda: watch.stdout.count("presence=unconfirmed") == NUM_CRAMPED)
        await publish_statuses(fleet, NUM_CRAMPED, seq=2)
        await eventually(lambda: watch.stdout.count("presence=online") == NUM_CRAMPED)
        assert "dropping" not in watch.stdout


def test_the_status_of_a_run_of_10000_clients_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    simulated_fleet = import_module("simulated_fleet")
    assert simulated_fleet.live(10_000, tmp_path)["bytes of a run's status"] <= 384 * 1024
