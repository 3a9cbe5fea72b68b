"""Classic `flwr.server.start_server` programs: joined by a bare `POST /start` and a trigger, waited for if not up."""

import sys

import httpx
import pytest
from line_site import FIRST
from ports import free_port
from reader import OwnerStatus
from yard import TIMEOUT_S, Installed, Site

import fedops_mqtt
from fedops_mqtt.protocol import ClientCondition, Outcome, Phase, StartTrigger, Transport, topics, utc_now

ROUNDS = 2


@pytest.mark.long
async def test_a_classic_server_is_joined_by_a_bare_start_and_by_a_trigger_even_before_it_is_up(site: Site) -> None:
    client = await site.start_client(FIRST, "classic_app:AddOne", http="127.0.0.1:0")
    born = await site.observer.until_client(FIRST, ClientCondition.ONLINE)
    shim = (await client.until_printed(r"HTTP shim listens address=(\S+)")).group(1)

    address = f"127.0.0.1:{free_port()}"
    async with httpx.AsyncClient(base_url=f"http://{shim}", timeout=TIMEOUT_S, trust_env=False) as http:
        answer = await http.post("/start", json={"server_ip": address, "client_mac": FIRST})
    assert answer.json()["FL_client_start"] is True
    await until_it_waits(site)
    server = await serve_classic(site, address)
    by_http = await until_trained(site, run_id=None)
    assert await server.wait() == 0, server.stderr
    assert f"distributed losses {[0.25] * ROUNDS}" in server.stdout

    address = f"127.0.0.1:{free_port()}"
    async with fedops_mqtt.connect(site.broker) as bus:
        await bus.publish(topics.client_start(site.task_id, FIRST), trigger(site, born.status.instance, address))
    await site.observer.until_client(FIRST, ClientCondition.TRAIN_STARTED)
    await until_it_waits(site)
    server = await serve_classic(site, address)
    by_trigger = await until_trained(site, run_id="by-trigger")
    assert await server.wait() == 0, server.stderr
    assert by_trigger.status.instance == by_http.status.instance
    assert site.observer.numbers[FIRST]["train_loss"] == 0.5


async def until_it_waits(site: Site) -> None:
    def is_joining() -> bool:
        view = site.observer.client(FIRST)
        return view is not None and view.status.run is not None and view.status.run.phase == Phase.JOINING

    await site.observer.until(is_joining)


async def until_trained(site: Site, *, run_id: str | None) -> OwnerStatus:
    def has_trained() -> bool:
        view = site.observer.client(FIRST)
        last = view.status.last_run if view is not None else None
        return last is not None and run_id in (None, last.run_id)

    await site.observer.until(has_trained)
    view = await site.observer.until_client(FIRST, ClientCondition.TRAIN_FINISHED)
    assert view.status.last_run is not None
    assert view.status.last_run.outcome == Outcome.FINISHED
    return view


async def serve_classic(site: Site, address: str) -> Installed:
    return await site.yard.start("-m", "classic_app", address, str(ROUNDS), command=sys.executable)


def trigger(site: Site, instance: str, address: str) -> StartTrigger:
    return StartTrigger(
        run_id="by-trigger",
        attempt=1,
        launch=1,
        term=1,
        task_id=site.task_id,
        client_mac=FIRST,
        instance=instance,
        server_ip=address,
        transport=Transport.GRPC,
        at=utc_now(),
    )
