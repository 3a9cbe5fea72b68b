"""A caller is identified by what the call names, then by its address, then by who is expected; else it stays open."""

import pytest

from fedops_mqtt.bridge.peer_registry import Caller, find_peer
from fedops_mqtt.bridge.peer_state import PeerState

ONE, TWO, ALIAS = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"


def link(
    mac: str, *, own_mac: str | None = None, task_id: str = "t", host: str = "10.0.0.1", busy: bool = False
) -> PeerState:
    return PeerState(
        name=mac,
        peer=None,
        client_mac=mac,
        own_mac=own_mac or mac,
        task_id=task_id,
        hosts=frozenset({host}),
        is_training=busy,
    )


def found(links: list[PeerState], **caller: str) -> str | None:
    who = find_peer(links, Caller(**caller), expected=lambda each: each.is_training)
    return who.client_mac if who else None


def test_the_only_client_needs_no_proof() -> None:
    assert found([link(ONE)], host="10.9.9.9") == ONE


def test_the_user_name_in_the_url_outweighs_everything() -> None:
    links = [link(ONE, busy=True), link(TWO, host="10.0.0.2")]
    assert found(links, client_mac=TWO, host="10.0.0.1", own_mac=ONE) == TWO
    assert found(links, client_mac=ALIAS, host="10.0.0.1") is None


@pytest.mark.parametrize(
    "caller", [{"own_mac": TWO}, {"host": "10.0.0.2"}, {"task_id": "other"}], ids=["mac", "address", "task"]
)
def test_one_fact_is_enough_where_it_identifies_the_caller(caller: dict[str, str]) -> None:
    assert found([link(ONE), link(TWO, host="10.0.0.2", task_id="other")], **caller) == TWO


def test_two_clients_on_one_machine_are_distinguished_by_which_one_trains() -> None:
    twins = [link(ONE), link(ALIAS, own_mac=ONE, busy=True)]
    assert found(twins, own_mac=ONE, host="10.0.0.1") == ALIAS
    twins[0].is_training = True
    assert found(twins, own_mac=ONE, host="10.0.0.1") is None


def test_a_fact_that_fits_no_client_excludes_none() -> None:
    assert found([link(ONE, busy=True), link(TWO)], host="192.168.7.7") == ONE
