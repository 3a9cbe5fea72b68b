"""What a person who watches a run sees of it over a slow network: every phase, as a status on the bus."""

import pytest
from device_plan import SERVER, DevicePlan, evaluation_of
from fault_proxy import FaultProxy
from line_site import APP, FIRST, PROGRAM, until_phase
from ports import free_port
from yard import Site

from fedops_mqtt.protocol import ClientCondition, Phase, RunOutcome

NUMBERS = 4 * 1024**2
"""16 MiB: more than the sockets on the way hold by themselves."""
SLOWNESS_S = 0.02
"""For each 64 KiB: a transfer of the model takes five seconds."""


@pytest.mark.long
async def test_every_phase_of_a_client_is_seen_on_the_bus(site: Site, device_plan: DevicePlan) -> None:
    await site.start_client(FIRST, APP, partition_id=0, num_partitions=1)
    await site.observer.until_client(FIRST, ClientCondition.ONLINE)
    port = free_port()
    async with FaultProxy("127.0.0.1", port, is_mqtt=False).running() as network:
        addresses = f'listen = "127.0.0.1:{port}"\nadvertise = "{network.address}"'
        await site.start_manager(module=PROGRAM, server_args=["--numbers", str(NUMBERS)], more=addresses)
        device_plan.write({SERVER: 0})
        network.stall()
        run_id = await site.start_run(num_rounds=1, min_clients=1)
        await until_phase(site, FIRST, Phase.JOINING)
        network.heal()
        await until_phase(site, FIRST, Phase.WAITING)
        network.delay_s = SLOWNESS_S
        device_plan.write({FIRST: 0, evaluation_of(FIRST): 0})
        await until_phase(site, FIRST, Phase.DOWNLOADING)
        await until_phase(site, FIRST, Phase.TRAINING)
        device_plan.write({evaluation_of(FIRST): 0})
        await until_phase(site, FIRST, Phase.UPLOADING)
        await until_phase(site, FIRST, Phase.EVALUATING)
        device_plan.write({})
        run = await site.observer.until_ended(run_id)
    assert run.outcome == RunOutcome.COMPLETED, run
