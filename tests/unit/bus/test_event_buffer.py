"""The event buffer: its order, and what it drops when the reader cannot keep up."""

from fedops_mqtt.bus import BusEvent, Connected, Disconnected, Malformed, Received
from fedops_mqtt.bus.events import EventBuffer
from fedops_mqtt.protocol import ClientMetrics, ClientStatus, StartTrigger, TopicError, topics, utc_now

MAC = "02:00:00:00:00:01"


def published(epoch: int, seq: int, task_id: str = "t") -> Received:
    status = ClientStatus(
        status="online", task_id=task_id, client_mac=MAC, instance="a", epoch=epoch, seq=seq, at=utc_now()
    )
    return Received(topics.client_status(task_id, MAC), status, False)


def numbers() -> Received:
    message = ClientMetrics(kind="round", task_id="t", client_mac=MAC, instance="a", at=utc_now())
    return Received(topics.client_metrics("t", MAC), message, False)


def trigger() -> Received:
    message = StartTrigger(
        run_id="r", attempt=1, launch=1, term=1, task_id="t", client_mac=MAC, server_ip="h:1", at=utc_now()
    )
    return Received(topics.client_start("t", MAC), message, False)


def test_events_come_out_in_the_order_they_went_in() -> None:
    event_buffer, events = EventBuffer(), [published(1, 1), numbers(), published(1, 2)]
    for event in events:
        event_buffer.put(event)
    assert event_buffer.take() == events[0]
    assert event_buffer.take_all() == events[1:]
    assert event_buffer.take() is None


def test_past_the_mark_only_what_is_still_true_stays() -> None:
    event_buffer = EventBuffer(mark=8)
    garbage = Malformed("x", TopicError("x", "none"))
    start = trigger()
    connected, lost = Connected("5"), Disconnected("away")
    events: list[BusEvent] = [
        connected,
        published(2, 1),
        numbers(),
        garbage,
        start,
        lost,
        published(1, 9),
        published(2, 2),
    ]
    for event in events:
        event_buffer.put(event)
    assert event_buffer.take_all() == [connected, start, lost, events[-1]]


def test_a_stale_status_that_arrives_last_does_not_replace_the_current_one() -> None:
    event_buffer = EventBuffer(mark=2)
    truth, late = published(2, 1), published(1, 9)
    event_buffer.put(truth)
    event_buffer.put(late)
    assert event_buffer.take_all() == [truth]


def test_a_flood_keeps_the_event_buffer_small() -> None:
    event_buffer = EventBuffer(mark=100)
    for n in range(10_000):
        event_buffer.put(published(1, n))
    assert len(event_buffer.take_all()) <= 100


def test_a_fleet_larger_than_the_mark_is_kept_whole() -> None:
    event_buffer = EventBuffer(mark=10)
    fleet = [published(1, 1, task_id=f"t{n}") for n in range(500)]
    for event in fleet:
        event_buffer.put(event)
    assert event_buffer.take_all() == fleet
