"""A broker that drops messages is detected by its count, or by clients whose first status never arrived."""

from run_parts import TASK, A, client, will

from fedops_mqtt.core.fencing import MIN_UNHEARD, DroppedMessageDetector

MACS = [f"02:00:00:00:00:{number:02x}" for number in range(1, MIN_UNHEARD + 1)]


def speak_on(losses: DroppedMessageDetector, macs: list[str], *, is_retained: bool = False) -> None:
    for mac in macs:
        losses.note(client(mac, seq=7), is_known=False, is_retained=is_retained)


def test_messages_that_the_broker_dropped_before_the_connection_are_not_counted() -> None:
    losses = DroppedMessageDetector()
    losses.count(500)
    assert losses.problem is None
    losses.count(503)
    assert losses.num_dropped == 3
    assert "dropped 3 messages" in (losses.problem or "")


def test_a_broker_that_began_anew_counts_anew() -> None:
    losses = DroppedMessageDetector()
    losses.count(500)
    losses.listen()
    losses.count(0)
    losses.count(2)
    assert losses.num_dropped == 2


def test_clients_whose_first_status_never_arrived_show_dropped_messages() -> None:
    losses = DroppedMessageDetector()
    speak_on(losses, MACS[:-1])
    assert losses.problem is None
    speak_on(losses, MACS)
    assert f"{MIN_UNHEARD} clients" in (losses.problem or "")


def test_births_known_clients_retained_statuses_and_wills_show_no_dropped_message() -> None:
    losses = DroppedMessageDetector()
    for mac in MACS:
        losses.note(client(mac, seq=1), is_known=False, is_retained=False)
        losses.note(client(mac, seq=9), is_known=True, is_retained=False)
        losses.note(client(mac, seq=9), is_known=False, is_retained=True)
        losses.note(will(mac), is_known=False, is_retained=False)
    assert (losses.dropped_topics, losses.problem) == (set(), None)


def test_a_forgotten_client_that_goes_on_publishing_is_no_sign_of_dropped_messages() -> None:
    losses = DroppedMessageDetector()
    losses.forget(TASK, A)
    speak_on(losses, [A])
    assert not losses.dropped_topics


def test_a_retained_status_that_comes_late_was_not_dropped() -> None:
    losses = DroppedMessageDetector()
    speak_on(losses, MACS)
    speak_on(losses, MACS, is_retained=True)
    assert losses.problem is None
