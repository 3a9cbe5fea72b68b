from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from run_parts import RUN, TASK, A, B, client, ended, hand, server, will

from fedops_mqtt.core.fencing import stamp_of
from fedops_mqtt.core.fleet import Fleet, Presence, is_idle, is_will
from fedops_mqtt.protocol import ClientCondition, ClientStatus, ServerCondition, topics

OUT = ClientCondition.CLIENT_OUT


def fleet_of(*statuses: ClientStatus, at: float = 0.0, is_retained: bool = False) -> Fleet:
    fleet = Fleet()
    fleet.listen(at)
    for each in statuses:
        fleet.apply(each, now=at, is_retained=is_retained)
    return fleet


def presence(fleet: Fleet, mac: str = A) -> Presence:
    return fleet.clients[TASK, mac].presence


def test_a_late_will_does_not_hide_a_client_that_is_back() -> None:
    fleet = fleet_of(client(epoch=1), client(epoch=2), will(epoch=1))
    assert presence(fleet) is Presence.ONLINE
    assert fleet.num_stale == 1


def test_the_will_of_the_present_connection_takes_the_client_out_with_its_reason() -> None:
    view = fleet_of(client(epoch=2, seq=9), will(epoch=2)).clients[TASK, A]
    assert (view.presence, view.out_reason) == (Presence.OUT, "lost")


def test_a_will_keeps_the_run_of_its_owners_last_status() -> None:
    status = fleet_of(client(hand=hand(), last_run=ended()), will()).clients[TASK, A].status
    assert (status.status, status.run, status.last_run) == (OUT, hand(), ended())


def test_a_goodbye_is_the_whole_truth_and_keeps_nothing() -> None:
    goodbye = client(status=OUT, seq=2, reason="shutdown")
    view = fleet_of(client(hand=hand()), goodbye).clients[TASK, A]
    assert (view.status.run, view.out_reason) == (None, "shutdown")


def test_a_snapshot_overtaken_by_its_own_will_still_gives_what_the_will_leaves_out() -> None:
    view = fleet_of(will(epoch=1), client(epoch=1, seq=3, last_run=ended())).clients[TASK, A]
    assert (view.presence, view.status.last_run) == (Presence.OUT, ended())


def test_a_servers_will_keeps_its_run_and_address() -> None:
    fleet = Fleet()
    fleet.apply(server(ServerCondition.RUNNING), now=0.0, is_retained=False)
    out = server(ServerCondition.SERVER_OUT, reason="lost", run_id=None, launch=0)
    fleet.apply(out.model_copy(update={"seq": will().seq, "server_ip": None}), now=0.0, is_retained=False)
    said = fleet.servers[TASK].status
    assert (said.status, said.run_id, said.launch, said.server_ip) == (
        ServerCondition.SERVER_OUT,
        RUN,
        1,
        "127.0.0.1:9000",
    )


def test_a_client_without_three_heartbeats_is_out_as_silent_and_any_status_brings_it_back() -> None:
    fleet = fleet_of(client(heartbeat_s=10))
    assert fleet.expire(30.0) == []
    assert [view.out_reason for view in fleet.expire(30.1)] == ["silent"]
    assert fleet.expire(99.0) == []
    fleet.apply(client(seq=2, heartbeat_s=10), now=99.0, is_retained=False)
    assert presence(fleet) is Presence.ONLINE


def test_leases_pause_while_the_reader_is_disconnected_and_start_anew_when_it_reconnects() -> None:
    fleet = fleet_of(client(heartbeat_s=10))
    fleet.pause()
    assert fleet.expire(1000.0) == []
    fleet.listen(1000.0)
    assert fleet.expire(1030.0) == []
    assert len(fleet.expire(1030.1)) == 1


def test_a_retained_status_is_unconfirmed_until_a_live_one_arrives() -> None:
    fleet = fleet_of(client(), is_retained=True)
    assert presence(fleet) is Presence.UNCONFIRMED
    fleet.apply(client(seq=2), now=1.0, is_retained=False)
    assert presence(fleet) is Presence.ONLINE


def test_presence_changes_have_a_time_and_heartbeats_do_not_move_it() -> None:
    fleet = fleet_of(client(seq=1))
    fleet.apply(client(seq=2), now=5.0, is_retained=False)
    assert fleet.clients[TASK, A].since == 0.0
    fleet.apply(will(), now=7.0, is_retained=False)
    assert fleet.clients[TASK, A].since == 7.0


def test_a_cleared_topic_is_forgotten() -> None:
    fleet = fleet_of(client(A), client(B))
    fleet.forget(topics.client_status(TASK, A))
    assert [view.status.client_mac for view in fleet.of_task(TASK)] == [B]


def test_a_client_that_trains_or_is_out_is_not_idle() -> None:
    fleet = fleet_of(client(A), client(B, hand=hand()))
    assert is_idle(fleet.clients[TASK, A])
    assert not is_idle(fleet.clients[TASK, B])


def test_an_owner_that_lost_its_epoch_is_accepted_again_once_its_old_instance_is_offline() -> None:
    fleet = fleet_of(client(A, epoch=1000, instance="before", heartbeat_s=10.0))
    fleet.listen(0.0)
    fleet.apply(client(A, epoch=1, seq=1, instance="after", heartbeat_s=10.0), now=20.0, is_retained=False)
    fleet.expire(35.0)
    assert presence(fleet) is Presence.OUT
    for seq, at in ((2, 40.0), (3, 45.0)):
        assert not fleet.apply(
            client(A, epoch=1, seq=seq, instance="after", heartbeat_s=10.0), now=at, is_retained=False
        )
    assert presence(fleet) is Presence.OUT
    assert fleet.apply(client(A, epoch=1, seq=4, instance="after", heartbeat_s=10.0), now=50.0, is_retained=False)
    assert presence(fleet) is Presence.ONLINE
    assert fleet.clients[TASK, A].status.instance == "after"


def test_an_owner_is_accepted_again_though_only_the_will_of_its_old_instance_is_known() -> None:
    fleet = fleet_of(will(A, epoch=1000, instance="before"))
    for seq, at in ((1, 10.0), (2, 20.0)):
        fleet.apply(client(A, epoch=1, seq=seq, instance="after", heartbeat_s=10.0), now=at, is_retained=False)
    assert presence(fleet) is Presence.ONLINE


def test_one_late_status_of_a_dead_client_is_no_return_however_often_it_comes() -> None:
    fleet = fleet_of(client(A, epoch=5, instance="before"), will(A, epoch=5, instance="before"))
    for at in (10.0, 100.0, 1000.0):
        fleet.apply(client(A, epoch=1, instance="long dead"), now=at, is_retained=False)
    assert presence(fleet) is Presence.OUT


@st.composite
def histories(draw: st.DrawFn) -> list[ClientStatus]:
    """All statuses of two clients over several connections: snapshots in order, and a will for some connections."""
    statuses = []
    for mac in (A, B):
        for epoch in range(1, draw(st.integers(1, 4)) + 1):
            for seq in range(1, draw(st.integers(0, 3)) + 1):
                last = ended(attempt=draw(st.integers(1, 3))) if draw(st.booleans()) else None
                status = draw(st.sampled_from(ClientCondition))
                statuses.append(client(mac, status, epoch=epoch, seq=seq, instance=f"i{epoch}", last_run=last))
            if draw(st.booleans()):
                statuses.append(will(mac, epoch=epoch, instance=f"i{epoch}"))
    return statuses


def truth(fleet: Fleet) -> dict[tuple[str, str], tuple[ClientStatus, bool]]:
    return {key: (view.status, view.is_out) for key, view in fleet.clients.items()}


@given(histories(), st.data())
def test_any_order_and_duplication_of_delivery_ends_in_the_same_fleet(
    statuses: list[ClientStatus], data: st.DataObject
) -> None:
    extra = data.draw(st.lists(st.sampled_from(statuses), max_size=6)) if statuses else []
    delivered = data.draw(st.permutations(statuses + extra))
    assert truth(fleet_of(*delivered)) == truth(fleet_of(*statuses))


@given(histories(), st.data())
def test_applying_everything_again_changes_nothing(statuses: list[ClientStatus], data: st.DataObject) -> None:
    fleet = fleet_of(*statuses)
    before = dict(fleet.clients)
    for each in data.draw(st.permutations(statuses)):
        assert not fleet.apply(each, now=9.0, is_retained=data.draw(st.booleans()))
    assert fleet.clients == before


@given(histories(), st.data())
def test_no_will_hides_a_client_that_has_connected_since(statuses: list[ClientStatus], data: st.DataObject) -> None:
    newest = max((stamp_of(each).epoch for each in statuses), default=0) + 1
    born = client(A, epoch=newest)
    fleet = fleet_of(*data.draw(st.permutations([*statuses, born])))
    for each in filter(is_will, statuses):
        fleet.apply(each, now=1.0, is_retained=data.draw(st.booleans()))
    assert presence(fleet) is Presence.ONLINE


@given(histories(), st.lists(st.sampled_from(["silence", "forget A", "forget B"]), max_size=4), st.data())
def test_the_tally_is_what_a_count_of_everybody_gives(
    statuses: list[ClientStatus], happened: list[str], data: st.DataObject
) -> None:
    fleet, now = fleet_of(), 0.0
    for what in data.draw(st.permutations([*statuses, *happened])):
        now += 1.0
        if isinstance(what, ClientStatus):
            fleet.apply(what, now=now, is_retained=data.draw(st.booleans()))
        elif what == "silence":
            now += 1000.0
            fleet.expire(now)
        else:
            fleet.forget(topics.client_status(TASK, A if what.endswith("A") else B))
        views = fleet.clients.values()
        assert +fleet.counts == Counter((TASK, view.presence, view.status.status) for view in views)
        assert fleet.num_here == sum(not view.is_out for view in views)
