"""How a training ended is known, though its daemon is killed after it wrote that down and before anybody heard it."""

import os
import signal
from urllib.parse import urlsplit

import pytest
from device_plan import DevicePlan
from fault_proxy import FaultProxy
from line_site import APP, FIRST, PROGRAM, start_with_all
from reader import Json
from yard import Installed, Site

from fedops_mqtt.protocol import ClientCondition, MemberCondition, Outcome, RunOutcome

WORD = b'"train-finished"'


class Executioner:
    """Kills a daemon as its word leaves it: the packet is seen, the process is dead, and the broker never hears."""

    def __init__(self) -> None:
        self.condemned: Installed | None = None
        self.num_words = 0

    def swallow(self, packet: bytes) -> bool:
        if WORD not in packet or self.condemned is None:
            return False
        self.num_words += 1
        if self.condemned.process.returncode is None:
            os.kill(self.condemned.process.pid, signal.SIGKILL)
        return True


@pytest.mark.long
@pytest.mark.parametrize("is_manager_away", [False, True])
async def test_the_outcome_survives_a_daemon_that_is_killed_between_journal_and_publish(
    site: Site, device_plan: DevicePlan, is_manager_away: bool
) -> None:
    broker, executioner = urlsplit(site.broker), Executioner()
    async with FaultProxy(broker.hostname or "", broker.port or 0).running() as proxy:
        proxy.swallows = executioner.swallow
        daemon = await site.start_client(FIRST, APP, broker=proxy.url, partition_id=0, num_partitions=1)
        await site.observer.until_client(FIRST, ClientCondition.ONLINE)
        manager = await site.start_manager(module=PROGRAM)
        run_id = await start_with_all(site, device_plan, [FIRST], num_rounds=1, min_clients=1)
        if is_manager_away:
            await manager.end(signal.SIGKILL)
        executioner.condemned = daemon
        device_plan.write({})
        assert await daemon.wait() == -signal.SIGKILL
        await site.observer.until_client(FIRST, ClientCondition.CLIENT_OUT)
        assert executioner.num_words == 1
        assert last_run(site) is None
        executioner.condemned = None

        await site.start_client(FIRST, APP, broker=proxy.url)
        await site.observer.until_client(FIRST, ClientCondition.ONLINE)
        said = last_run(site)
        assert said is not None
        assert (said.run_id, said.attempt, said.outcome) == (run_id, 1, Outcome.FINISHED)
        if is_manager_away:
            await site.start_manager(module=PROGRAM)
        assert (await site.observer.until_ended(run_id)).outcome == RunOutcome.COMPLETED
        members: dict[str, dict[str, object]] = (await site.ask(f"/runs/{run_id}"))["clients"]  # type: ignore[assignment]
        assert (members[FIRST]["status"], members[FIRST]["attempt"]) == (MemberCondition.FINISHED, 1)


def last_run(site: Site) -> Json | None:
    """What the client itself has said of its last run, on the bus."""
    view = site.observer.client(FIRST)
    assert view is not None
    return view.status.last_run  # type: ignore[no-any-return]
