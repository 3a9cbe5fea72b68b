"""FedOps' client managers stay as they are: before our daemon they use the shim, before their own client the bridge."""

import httpx
import pytest
from bridge_parts import MACS, NEW, Crossing
from ports import free_port
from yard import TIMEOUT_S

from fedops_mqtt.protocol import ClientCondition, Outcome, RunOutcome

_HEARTBEATS = 24
"""Seconds, by the heartbeat that the test sets: more than a client may take to come."""


@pytest.mark.long
@pytest.mark.parametrize("generation", [1, 2, 3])
async def test_a_client_manager_of_each_generation_drives_our_daemon(crossing: Crossing, generation: int) -> None:
    server = await crossing.start_open_server()
    port, at = free_port(), free_port()
    about = {"port": port, "ready": server, "task": crossing.site.task_id}
    manager = await crossing.start_old_manager(generation, f"http://127.0.0.1:{at}", NEW, **about)
    managers = {"client_manager_url": manager.url, "server_manager_url": manager.url}
    by_get = {"http_get_start": True} if generation == 1 else {}
    await crossing.start_new(http=f"127.0.0.1:{at}", aggregation_host="127.0.0.1", **managers, **by_get)
    finished = await crossing.site.observer.until_client(NEW, ClientCondition.TRAIN_FINISHED)
    assert finished.status.last_run is not None
    assert (finished.status.last_run.run_id, finished.status.last_run.outcome) == ("by-hand", Outcome.FINISHED)
    assert finished.status.gl_model == 7, "what its manager answers to /info/"
    await manager.process.until_printed("^trainFin$")
    assert manager.process.stdout.count("started") == 1


@pytest.mark.long
async def test_a_device_with_its_own_client_manager_is_spoken_for_too(crossing: Crossing) -> None:
    await crossing.start_manager()
    await crossing.start_bridge(join_limit_s=20, heartbeat_s=1)
    port, at = free_port(), free_port()
    client = f"http://127.0.0.1:{at}"
    manager = await crossing.start_old_manager(3, client, MACS[0], port=port, server_manager=crossing.url)
    await crossing.start_old(MACS[0], "--holds", "--client-manager", manager.url, managers=crossing.url, port=at)
    online = await crossing.site.observer.until_client(MACS[0], ClientCondition.ONLINE)
    assert online.status.client_name == "old-site"
    for _ in range(2):  # a second run shows that its client manager is not left waiting
        run_id = await crossing.site.start_run()
        begun = await crossing.site.observer.until_client(MACS[0], ClientCondition.TRAIN_STARTED)
        await several_heartbeats(crossing, begun.status.seq)
        async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as http:
            await http.get(f"{client}/release")
        run = await crossing.site.observer.until_ended(run_id)
        assert run.outcome == RunOutcome.COMPLETED
        told = await crossing.site.ask(f"/runs/{run_id}/metrics")
        kinds = {row["kind"] for row in told["items"]}
        assert "train-result" in kinds
        assert "system" not in kinds, "the bridge's machine is not the device"
        finished = await crossing.site.observer.until_client(MACS[0], ClientCondition.TRAIN_FINISHED)
        assert finished.status.last_run is not None
        assert (finished.status.last_run.run_id, finished.status.last_run.outcome) == (run_id, Outcome.FINISHED)
    assert manager.process.stdout.count("started") == 2


async def several_heartbeats(crossing: Crossing, since: int) -> None:
    """Wait longer than a start may take: its client manager, silent while it trains, is not taken for gone."""

    def is_later() -> bool:
        view = crossing.site.observer.client(MACS[0])
        assert view is not None
        assert view.status.status in (ClientCondition.TRAIN_STARTED, ClientCondition.TRAIN_FINISHED)
        return view.status.seq > since + _HEARTBEATS or view.status.status == ClientCondition.TRAIN_FINISHED

    await crossing.site.observer.until(is_later)
