"""News for listeners: each gets the kinds that it asked for, and what nobody reads is not made."""

from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.manager.events import Events, NewsKind, Subscription
from fedops_mqtt.protocol import ClientStatus, topics, utc_now

TASK, MAC = "digits", "02:00:00:00:00:01"


def fleet_of_one() -> Fleet:
    fleet = Fleet()
    status = ClientStatus(
        instance="i", epoch=1, seq=1, at=utc_now(), status="online", task_id=TASK, client_mac=MAC, client_name="one"
    )
    fleet.apply(status, now=0.0, is_retained=False)
    return fleet


def kinds_of(subscription: Subscription) -> list[NewsKind]:
    return [news.kind for news in subscription.take()]


async def test_a_listener_gets_the_kinds_that_it_asked_for_and_all_when_it_asked_for_none() -> None:
    events, fleet = Events(), fleet_of_one()
    with events.subscribed() as everything, events.subscribed(NewsKind.FORGOTTEN) as losses:
        events.tell_clients([(TASK, MAC)], fleet)
        fleet.forget(topics.client_status(TASK, MAC))
        events.tell_clients([(TASK, MAC)], fleet)
    assert kinds_of(everything) == [NewsKind.CLIENT, NewsKind.FORGOTTEN]
    assert kinds_of(losses) == [NewsKind.FORGOTTEN]


async def test_listeners_share_one_record_of_a_change() -> None:
    events = Events()
    with events.subscribed() as one, events.subscribed() as other:
        events.tell_clients([(TASK, MAC)], fleet_of_one())
    (first,), (second,) = one.take(), other.take()
    assert first.record is second.record
    assert first.record["client_mac"] == MAC
