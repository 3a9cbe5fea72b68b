"""A large model through installed processes: it adds up, memory stays bounded, and its bytes are told."""

import numpy as np
import pytest
from device_plan import DevicePlan, evaluation_of
from line_site import APP, FIRST, PROGRAM, SECOND, model_of, start_with_all, trainings
from yard import MARK, Site, peak_bytes

from fedops_mqtt.demo.reaper import marked
from fedops_mqtt.protocol import RunOutcome

pytestmark = pytest.mark.long

NUMBERS = 16 * 1024**2
MODEL_BYTES = 4 * NUMBERS
CLIENTS = 2
ROUNDS = 2
ANSWERED_BEFORE_THE_LAST_EVALUATION = CLIENTS * (2 * ROUNDS - 1)
OWN_OF_SERVER = 6
"""Models that FedAvg, the evaluation and the checkpoint keep for themselves, beside the line's (N + 2)."""
OWN_OF_APP = 4
"""Models that the app takes for itself: what it was sent, its copy, its answer; beside the line's three."""
OWN_OF_PROCESS = 2
"""And the interpreter with flwr in it."""


async def test_a_model_of_64_mib_adds_up_within_its_memory_and_its_bytes_are_reported(
    site: Site, device_plan: DevicePlan
) -> None:
    clients = await site.start_clients(CLIENTS, APP)
    await site.start_manager(module=PROGRAM, server_args=["--numbers", str(NUMBERS)])
    run_id = await start_with_all(site, device_plan, clients, num_rounds=ROUNDS, min_clients=2)
    (server,) = (each.pid for each in marked(site.yard.mark, MARK) if PROGRAM in each.cmdline())
    processes = {"server": server, FIRST: trainings(clients[FIRST])[0], SECOND: trainings(clients[SECOND])[0]}
    device_plan.write({evaluation_of(mac): 1 for mac in clients})
    await site.observer.until(lambda: len(site.observer.answers) >= ANSWERED_BEFORE_THE_LAST_EVALUATION)
    peaks = {name: peak_bytes(pid) / MODEL_BYTES for name, pid in processes.items()}
    device_plan.write({})
    run = await site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.COMPLETED, run
    model = model_of(run)
    np.testing.assert_array_equal(model[:CLIENTS], ROUNDS)
    assert not model[CLIENTS:].any()

    print("peak memory in models:", {name: round(models, 1) for name, models in peaks.items()})
    assert peaks["server"] < CLIENTS + 2 + OWN_OF_SERVER + OWN_OF_PROCESS
    assert max(peaks[FIRST], peaks[SECOND]) < 3 + OWN_OF_APP + OWN_OF_PROCESS
    by_server = [each for each in site.observer.rounds[run_id] if each.round]
    assert [each.round for each in by_server] == [1, 2]
    assert all(each.bytes_out >= 2 * CLIENTS * MODEL_BYTES for each in by_server), "to train and to evaluate"
    assert all(each.bytes_in >= CLIENTS * MODEL_BYTES for each in by_server)
    assert all(each.duration_s for each in by_server)
    last = [each for each in site.observer.answers if each.client_mac == FIRST][-1]
    assert (last.round, last["values"]["stage"]) == (ROUNDS, "evaluate")
    assert last["values"]["bytes_in"] >= 2 * ROUNDS * MODEL_BYTES
