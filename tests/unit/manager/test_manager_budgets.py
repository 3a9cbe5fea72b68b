"""One device cannot fill the manager: not with invented tasks, not with numbers, not with words."""

import asyncio

import orjson
import pytest

from fedops_mqtt.bus import Connection, Received
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.manager.api.prometheus import OTHER_TASKS, ManagerMetrics
from fedops_mqtt.manager.bus_reader import (
    JOURNAL_BYTES_AT_ONCE,
    MAX_OTHER_TASKS,
    STATUSES_AT_ONCE,
    STATUSES_PER_S,
    Budget,
    BusReader,
)
from fedops_mqtt.manager.open_runs import OpenRuns
from fedops_mqtt.protocol import ClientCondition, ClientMetrics, ClientStatus, MetricsKind, topics, utc_now

TASK = "digits"
BAD, GOOD = "02:00:00:00:00:0b", "02:00:00:00:00:0a"
AT = utc_now()


def published(mac: str = BAD, task_id: str = TASK, *, seq: int = 1, is_out: bool = False, reason: str = "") -> Received:
    condition = ClientCondition.CLIENT_OUT if is_out else ClientCondition.ONLINE
    status = ClientStatus(
        status=condition, reason=reason, task_id=task_id, client_mac=mac, instance="i", epoch=1, seq=seq, at=AT
    )
    return Received(topics.client_status(task_id, mac), status, False)


def numbers(mac: str = BAD, task_id: str = TASK, text: str = "x" * 4096) -> Received:
    values = {f"value-{number}": text for number in range(12)}
    message = ClientMetrics(kind=MetricsKind.ROUND, task_id=task_id, client_mac=mac, instance="i", values=values, at=AT)
    return Received(topics.client_metrics(task_id, mac), message, False)


@pytest.fixture
def bus_reader() -> BusReader:
    bus_reader = BusReader(Fleet(), OpenRuns([]), {TASK})
    bus_reader.fleet.listen(0.0)
    return bus_reader


@pytest.fixture
def open_runs(bus_reader: BusReader) -> OpenRuns:
    return bus_reader._open_runs


def test_invented_tasks_of_one_device_are_a_few_in_the_fleet_and_nothing_in_the_journal(
    bus_reader: BusReader, open_runs: OpenRuns
) -> None:
    for number in range(5_000):
        bus_reader.apply([published(task_id=f"invented-{number}"), numbers(task_id=f"invented-{number}")], now=1.0)
    bus_reader.apply([published(GOOD), published(BAD)], now=1.0)
    assert len(bus_reader.fleet.clients) == MAX_OTHER_TASKS + 2
    assert len(bus_reader.fleet.counts) == MAX_OTHER_TASKS + 1
    assert {event.client_mac for event in open_runs.take_batch().events} == {GOOD, BAD}
    bus_reader.apply([Received(topics.client_status("digitz", GOOD), published(GOOD, "digitz").message, True)], now=1.0)
    assert bus_reader.fleet.client("digitz", GOOD) is not None, "a name that was mistyped is seen"


def test_in_the_metrics_they_are_one_series(bus_reader: BusReader, open_runs: OpenRuns) -> None:
    connection = Connection("mqtt://127.0.0.1:1")
    meters = ManagerMetrics(bus_reader=bus_reader, open_runs=open_runs, connection=connection)
    for number in range(1_000):
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        bus_reader.apply([published(mac, task_id=f"invented-{number}"), published(mac)], now=1.0)
    text = asyncio.run(meters.exposition()).decode()
    assert "invented" not in text
    assert f'fedops_clients{{presence="online",status="online",task_id="{OTHER_TASKS}"}} 1000.0' in text
    assert f'fedops_clients{{presence="online",status="online",task_id="{TASK}"}} 1000.0' in text


def test_a_flood_of_metrics_takes_a_few_megabytes_of_journal_and_removes_no_other_clients_metrics(
    bus_reader: BusReader, open_runs: OpenRuns
) -> None:
    for number in range(3_000):
        bus_reader.apply([numbers()], now=number / 1000)
    bus_reader.apply([numbers(GOOD)], now=3.0)
    rows = open_runs.take_batch().client_metrics
    assert len(orjson.dumps([row["values"] for row in rows if row["client_mac"] == BAD])) < 1.1 * JOURNAL_BYTES_AT_ONCE
    assert [row["client_mac"] for row in rows].count(GOOD) == 1
    assert bus_reader.num_over_budget > 2_000
    bus_reader.apply([numbers()], now=3_000.0)
    assert len(open_runs.take_batch().client_metrics) == 1, "who was quiet for a while is taken again"


def test_a_flood_of_statuses_is_dropped_and_a_later_status_of_its_sender_is_accepted(
    bus_reader: BusReader, open_runs: OpenRuns
) -> None:
    for seq in range(10_000):
        bus_reader.apply([published(seq=seq, is_out=bool(seq % 2), reason="x" * 4096)], now=seq / 10_000)
    assert bus_reader.num_over_budget >= 10_000 - STATUSES_AT_ONCE - STATUSES_PER_S
    assert len(open_runs.take_batch().events) <= STATUSES_AT_ONCE + STATUSES_PER_S
    bus_reader.apply([published(GOOD), published(seq=10_001)], now=2.0)
    assert bus_reader.fleet.num_here == 2


def test_a_daemon_that_trains_as_fast_as_it_can_is_never_dropped(bus_reader: BusReader) -> None:
    for seq in range(1, 10_000):
        bus_reader.apply([published(seq=seq)], now=seq / 5)
    assert bus_reader.num_over_budget == 0


def test_a_budget_does_not_keep_who_has_used_nothing_of_late() -> None:
    budget = Budget(per_s=1.0, at_once=2.0)
    for number in range(50_000):
        assert budget.take(number, 2.0, now=float(number))
        assert not budget.take(number, 1.0, now=float(number))
    assert len(budget._left) <= 10_000
