"""FedOps clients that know HTTP and gRPC only take part in runs over the line, as the fleet sees it."""

import socket

import numpy as np
from bridge_parts import MACS, Crossing

from fedops_mqtt.protocol import ClientCondition, Outcome, RunOutcome
from fedops_mqtt.server.tensor_file import read_tensors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_an_old_client_trains_over_the_line_and_is_seen_finished(crossing: Crossing) -> None:
    await crossing.start_manager()
    port = free_port()
    await crossing.start_bridge(f"http://127.0.0.1:{port}")
    await crossing.start_old(MACS[0], managers=crossing.url, port=port)
    online = await crossing.site.observer.until_client(MACS[0], ClientCondition.ONLINE)
    assert online.status.agent["via"] == "http bridge"
    assert online.status.client_name == "old-pi"

    run_id = await crossing.site.start_run()
    finished = await crossing.site.observer.until_client(MACS[0], ClientCondition.TRAIN_FINISHED)
    assert finished.status.last_run is not None
    assert (finished.status.last_run.run_id, finished.status.last_run.outcome) == (run_id, Outcome.FINISHED)
    run = await crossing.site.observer.until_ended(run_id)
    assert run.outcome is RunOutcome.COMPLETED
    assert run.model_path is not None
    arrays = list(read_tensors(run.model_path)[0].values())
    assert all(np.array_equal(array, np.full_like(array, 2)) for array in arrays)
