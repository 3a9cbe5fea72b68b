"""A run that is stopped, and a server that is killed in the middle of one and goes on: as processes."""

import json
import signal

import numpy as np
import psutil
import pytest
from device_plan import DevicePlan
from line_site import APP, FIRST, PROGRAM, SECOND, member_status, model_of, start_with_all, trainings, until_training
from yard import MARK, Installed, Site, eventually

from fedops_mqtt.demo.reaper import marked
from fedops_mqtt.protocol import ClientCondition, MemberCondition, Outcome, RunOutcome

GRACE_S = 1.0


@pytest.mark.long
async def test_stop_ends_unstoppable_training_on_all_clients_and_keeps_the_last_whole_model(
    site: Site, device_plan: DevicePlan
) -> None:
    clients = await site.start_clients(2, APP, stop_grace_s=GRACE_S)
    await site.start_manager(module=PROGRAM)
    run_id = await start_with_all(site, device_plan, clients, num_rounds=50, min_clients=2)
    device_plan.write({FIRST: 2, SECOND: 2})
    for mac in clients:
        await until_training(site, mac, 3)
    device_plan.write({FIRST: "unstoppable", SECOND: 2})
    await eventually(lambda: psutil.Process(trainings(clients[FIRST])[0]).children())
    (server,) = servers(site)

    stopped = await site.yard.run("stop", run_id, "--wait", "--json", "--manager", site.manager_url)
    assert json.loads(stopped.stdout)["outcome"] == "stopped"
    for mac, client in clients.items():
        said = await site.observer.until_client(mac, ClientCondition.TRAIN_FAILED)
        assert said.status.last_run is not None
        assert (said.status.last_run.run_id, said.status.last_run.outcome) == (run_id, Outcome.STOPPED)
        assert not descendants(client)
    await eventually(lambda: not server.is_running())
    run = await site.observer.until_run(run_id, lambda run: run.model_path is not None)
    assert (run.outcome, run.round) == (RunOutcome.STOPPED, 2)
    np.testing.assert_array_equal(model_of(run), 2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("program", "app"),
    [
        ((), APP),
        pytest.param(("--strategy", "classic.FedAvg"), "steered:classic", marks=pytest.mark.long),
        pytest.param(("--server-app",), APP, marks=pytest.mark.long),
    ],
    ids=["strategy", "classic-strategy", "server-app"],
)
async def test_a_killed_server_is_launched_again_and_goes_on_with_the_same_training_processes(
    site: Site, device_plan: DevicePlan, program: tuple[str, ...], app: str
) -> None:
    clients = await site.start_clients(2, app)
    await site.start_manager(module=PROGRAM, server_args=program)
    run_id = await start_with_all(site, device_plan, clients, num_rounds=5, min_clients=2)
    device_plan.write(dict.fromkeys(clients, 2))
    for mac in clients:
        await until_training(site, mac, 3)
    before = {mac: trainings(client) for mac, client in clients.items()}
    (server,) = servers(site)
    server.send_signal(signal.SIGKILL)
    await site.observer.until_run(run_id, lambda run: run.launch == 2)
    await site.observer.until(lambda: all(member_status(site, mac) == MemberCondition.TRAINING for mac in clients))
    assert before == {mac: trainings(client) for mac, client in clients.items()}
    device_plan.write({})
    run = await site.observer.until_ended(run_id)
    assert (run.outcome, run.round, run.launch) == (RunOutcome.COMPLETED, 5, 2), run
    assert {each.attempt for each in run.clients.values()} == {1}
    np.testing.assert_array_equal(model_of(run), 5, "each round counted once")

    record = await site.ask(f"/runs/{run_id}")
    assert (record["launch"], record["outcome"]) == (2, "completed")
    told = await site.ask(f"/runs/{run_id}/rounds")
    assert sorted({each["round"] for each in told["items"]} - {0}) == [1, 2, 3, 4, 5]
    assert {each["launch"] for each in told["items"]} == {1, 2}
    assert [each["run_id"] for each in (await site.ask("/runs"))["items"]] == [run_id]


def servers(site: Site) -> list[psutil.Process]:
    return [each for each in marked(site.yard.mark, MARK) if PROGRAM in each.cmdline()]


def descendants(daemon: Installed) -> list[psutil.Process]:
    return psutil.Process(daemon.process.pid).children(recursive=True)
