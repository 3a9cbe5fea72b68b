"""FedOps clients that know HTTP and gRPC only take part in runs over the line, as the fleet sees it."""

import httpx
import numpy as np
import pytest
from bridge_parts import MACS, NEW, Crossing
from ports import free_port
from yard import TIMEOUT_S

from fedops_mqtt.protocol import ClientCondition, Outcome, RunOutcome
from fedops_mqtt.store.tensor_file import read_tensors


@pytest.mark.long
async def test_an_old_client_trains_over_the_line_and_is_seen_finished(crossing: Crossing) -> None:
    await crossing.start_manager()
    port = free_port()
    await crossing.start_bridge(f"http://127.0.0.1:{port}")
    await crossing.start_old(MACS[0], managers=crossing.url, port=port)
    online = await crossing.site.observer.until_client(MACS[0], ClientCondition.ONLINE)
    assert set(online.status.agent) == {"fedops-mqtt", "via"}, "nothing of the bridge's machine"
    assert online.status.agent["via"] == "http bridge"
    assert online.status.client_name == "old-pi"

    run_id = await crossing.site.start_run()
    finished = await crossing.site.observer.until_client(MACS[0], ClientCondition.TRAIN_FINISHED)
    assert finished.status.last_run is not None
    assert (finished.status.last_run.run_id, finished.status.last_run.outcome) == (run_id, Outcome.FINISHED)
    run = await crossing.site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.COMPLETED
    assert run.model_path is not None
    arrays = list(read_tensors(run.model_path)[0].values())
    assert all(np.array_equal(array, np.full_like(array, 2)) for array in arrays)


async def test_old_and_new_clients_train_together_at_a_fedops_server(crossing: Crossing) -> None:
    await crossing.start_manager(adopt=True, min_clients=2)
    port, at = free_port(), free_port()
    await crossing.start_bridge(f"http://127.0.0.1:{port}", fedops_server=f":{at}")
    old = await crossing.start_old(MACS[0], managers=crossing.url, port=port)
    await crossing.start_new()
    for mac in (MACS[0], NEW):
        await crossing.site.observer.until_client(mac, ClientCondition.ONLINE)
    await crossing.start_server("--clients", "2", port=at)

    run = await crossing.site.observer.until_only_ended()
    assert (run.outcome, run.round, run.gl_model) == (RunOutcome.COMPLETED, 2, 4)
    assert run.metrics == {"gl_loss": 0.5, "gl_accuracy": 0.5}
    async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as http:
        assert (await http.get(f"{old.url}/online")).json()["gl_model"] == 4, "what the bridge answered to /info/"
    for mac in (MACS[0], NEW):
        view = await crossing.site.observer.until_client(mac, ClientCondition.TRAIN_FINISHED)
        assert view.status.gl_model == 4
        assert view.status.last_run is not None
        assert (view.status.last_run.run_id, view.status.last_run.outcome) == (run.run_id, Outcome.FINISHED)
