"""News for listeners: each gets the kinds that it asked for, and what nobody reads is not made."""

from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.manager.events import ChangeTopic, Events, Subscription
from fedops_mqtt.protocol import ClientStatus, topics, utc_now

TASK, MAC = "digits", "02:00:00:00:00:01"


def fleet_of_one() -> Fleet:
    fleet = Fleet()
    status = ClientStatus(
        instance="i", epoch=1, seq=1, at=utc_now(), status="online", task_id=TASK, client_mac=MAC, client_name="one"
    )
    fleet.apply(status, now=0.0, is_retained=False)
    return fleet


def kinds_of(subscription: Subscription) -> list[ChangeTopic]:
    return [news.kind for news in subscription.take()]


async def test_a_listener_gets_the_kinds_that_it_asked_for_and_all_when_it_asked_for_none() -> None:
    events, fleet = Events(), fleet_of_one()
    with events.subscribed() as everything, events.subscribed(ChangeTopic.FORGOTTEN) as losses:
        events.note_clients([(TASK, MAC)], fleet)
        fleet.forget(topics.client_status(TASK, MAC))
        events.note_clients([(TASK, MAC)], fleet)
    assert kinds_of(everything) == [ChangeTopic.CLIENT, ChangeTopic.FORGOTTEN]
    assert kinds_of(losses) == [ChangeTopic.FORGOTTEN]


async def test_listeners_share_one_record_of_a_change() -> None:
    events = Events()
    with events.subscribed() as one, events.subscribed() as other:
        events.note_clients([(TASK, MAC)], fleet_of_one())
    (first,), (second,) = one.take(), other.take()
    assert first.record is second.record
    assert first.record["client_mac"] == MAC
