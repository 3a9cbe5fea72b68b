"""Rounds that know who is there: killed, vanished, hung and returning clients, a broker that restarts; as processes."""

import os
import signal

import numpy as np
import psutil
import pytest
from device_plan import ALL_ROUNDS, DevicePlan
from line_site import (
    APP,
    FIRST,
    PROGRAM,
    SECOND,
    THIRD,
    member_status,
    model_of,
    start_with_all,
    trainings,
    until_training,
)
from yard import Site, eventually

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.protocol import ClientCondition, MemberCondition, Outcome, RunOutcome

PING_S = 5.0
"""A client is lost after two of them without an answer: longer than a busy machine keeps a healthy one waiting."""
NEVER_S = 3600.0
"""A ping so rare that only a closed connection can tell of a death."""
JOIN_S = 30
"""Two training processes have to come up within it on a busy machine; then one is missed for as long."""


@pytest.mark.long
async def test_killed_clients_leave_their_round_at_once_and_one_that_comes_back_rejoins(
    site: Site, device_plan: DevicePlan
) -> None:
    clients = await site.start_clients(3, APP)
    await site.start_manager(module=PROGRAM, server_args=["--numbers", "3"], line_ping_s=NEVER_S)
    run_id = await start_with_all(site, device_plan, clients, num_rounds=3, min_clients=1)

    (training,) = trainings(clients[FIRST])
    await kill_until_gone(site, FIRST, training)
    failed = await site.observer.until_client(FIRST, ClientCondition.TRAIN_FAILED)
    assert "SIGKILL" in (failed.status.reason or "")
    await kill_until_gone(site, SECOND, clients[SECOND].process.pid)

    device_plan.write({THIRD: 1, SECOND: 0})
    await until_training(site, THIRD, 2)
    await site.start_client(SECOND, APP, partition_id=1, num_partitions=3)
    await site.observer.until(lambda: member_status(site, SECOND) == MemberCondition.TRAINING)
    device_plan.write({})
    run = await site.observer.until_ended(run_id)
    assert (run.outcome, run.round, run.launch) == (RunOutcome.COMPLETED, 3, 1), run
    back = await site.observer.until_client(SECOND, ClientCondition.TRAIN_FINISHED)
    assert back.status.last_run is not None
    assert (back.status.last_run.run_id, back.status.last_run.attempt) == (run_id, 2)
    assert {mac: each.status for mac, each in run.clients.items()} == {
        FIRST: MemberCondition.FAILED,
        SECOND: MemberCondition.FINISHED,
        THIRD: MemberCondition.FINISHED,
    }
    first, second, third = model_of(run)
    assert first == 0, "killed before its first reply"
    assert second > 0, "took part after it came back"
    assert third > second


@pytest.mark.long
async def test_a_host_that_vanishes_is_lost_within_three_pings_and_rejoins_when_it_is_back(
    site: Site, device_plan: DevicePlan
) -> None:
    clients = await site.start_clients(2, APP)
    await site.start_manager(module=PROGRAM, line_ping_s=PING_S)
    run_id = await start_with_all(site, device_plan, clients, num_rounds=4, min_clients=1)

    (training,) = trainings(clients[FIRST])
    frozen = [psutil.Process(training), psutil.Process(clients[FIRST].process.pid)]
    for process in frozen:
        process.suspend()
    await site.observer.until(lambda: member_status(site, FIRST) == MemberCondition.LOST)
    device_plan.write({SECOND: 1})
    await until_training(site, SECOND, 2)
    device_plan.write({FIRST: ALL_ROUNDS, SECOND: 1})
    for process in frozen:
        process.resume()
    await site.observer.until(lambda: member_status(site, FIRST) == MemberCondition.TRAINING)
    device_plan.write({})
    run = await site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.COMPLETED
    finished = await site.observer.until_client(FIRST, ClientCondition.TRAIN_FINISHED)
    assert finished.status.last_run is not None
    assert finished.status.last_run.attempt == 1, "the same process, without anyone's help"
    assert 0 < model_of(run)[0] < model_of(run)[1]


@pytest.mark.long
async def test_a_broker_restarted_in_a_round_costs_the_round_nothing(
    site: Site, device_plan: DevicePlan, broker: Mosquitto
) -> None:
    clients = await site.start_clients(2, APP)
    await site.start_manager(module=PROGRAM)
    device_plan.write(dict.fromkeys(clients, 1))
    run_id = await site.start_run(num_rounds=3, min_clients=2)
    for mac in clients:
        await until_training(site, mac, 2)
    before = {mac: trainings(client) for mac, client in clients.items()}
    await broker.restart()
    await site.observer.until(lambda: all(is_heard_again(site, mac) for mac in clients))
    assert before == {mac: trainings(client) for mac, client in clients.items()}
    device_plan.write({})
    run = await site.observer.until_ended(run_id)
    assert (run.outcome, run.launch) == (RunOutcome.COMPLETED, 1), run
    assert {each.attempt for each in run.clients.values()} == {1}
    np.testing.assert_array_equal(model_of(run), 3)


@pytest.mark.long
async def test_training_that_hangs_is_dropped_after_the_round_limit_and_reported_failed(
    site: Site, device_plan: DevicePlan
) -> None:
    clients = await site.start_clients(2, APP)
    await site.start_manager(module=PROGRAM, more="limits = {round_s = 30}")
    run_id = await start_with_all(site, device_plan, clients, num_rounds=2, min_clients=1)
    device_plan.write({FIRST: 0})
    failed = await site.observer.until_client(FIRST, ClientCondition.TRAIN_FAILED)
    assert "no reply within the round limit of 30 s" in (failed.status.reason or "")
    await eventually(lambda: not trainings(clients[FIRST]))
    run = await site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.COMPLETED
    assert run.clients[FIRST].status == MemberCondition.FAILED
    assert model_of(run)[1] > 0


@pytest.mark.long
async def test_fewer_clients_than_the_minimum_end_the_run_as_failed_with_their_names(
    site: Site, device_plan: DevicePlan
) -> None:
    clients = await site.start_clients(2, APP)
    await site.start_manager(module=PROGRAM, server_args=["--min-clients", "2"], more=f"limits = {{join_s = {JOIN_S}}}")
    device_plan.write(dict.fromkeys(clients, 1))
    run_id = await site.start_run(num_rounds=5, min_clients=2)
    for mac in clients:
        await until_training(site, mac, 2)
    await clients[FIRST].end(signal.SIGKILL)
    device_plan.write({})
    run = await site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.FAILED
    assert FIRST in (run.reason or "")
    assert "1 of at least 2" in (run.reason or "") or f"too few clients: 1 after {JOIN_S} s" in (run.reason or ""), (
        run.reason
    )
    left = await site.observer.until_client(SECOND, ClientCondition.TRAIN_FAILED)
    assert left.status.last_run is not None
    assert left.status.last_run.outcome == Outcome.STOPPED


@pytest.mark.long
async def test_a_client_that_comes_online_during_an_open_run_joins_it(site: Site, device_plan: DevicePlan) -> None:
    await site.start_client(FIRST, APP, partition_id=0, num_partitions=2)
    await site.observer.until_client(FIRST, ClientCondition.ONLINE)
    await site.start_manager(module=PROGRAM, more='join = "open"')
    device_plan.write({FIRST: 1})
    run_id = await site.start_run(num_rounds=5, min_clients=1)
    await until_training(site, FIRST, 2)
    late = await site.start_client(SECOND, APP, partition_id=1, num_partitions=2)
    await site.observer.until(lambda: member_status(site, SECOND) == MemberCondition.TRAINING)
    device_plan.write({FIRST: 3, SECOND: 3})
    await until_training(site, SECOND, 4)
    await late.end(signal.SIGTERM)
    device_plan.write({})
    run = await site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.COMPLETED, run
    first, second = model_of(run)
    assert second == 1, "half of what it added in round 3; it came in round 2 and was gone in round 4"
    assert first == 9, "two in rounds 1, 2, 4 and 5, which it did alone, and half of that in round 3"


async def kill_until_gone(site: Site, mac: str, pid: int) -> None:
    """Kill a process and wait until the server publishes that its client is not in the round."""
    os.kill(pid, signal.SIGKILL)
    await site.observer.until(lambda: member_status(site, mac) != MemberCondition.TRAINING)


def is_heard_again(site: Site, mac: str) -> bool:
    """Tell whether a client has spoken since the broker is back."""
    view = site.observer.client(mac)
    return view is not None and not view.is_out and view.status.run is not None
