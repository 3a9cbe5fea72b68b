"""`make chaos SEED=… MINUTES=… PROFILE=…`: a seeded schedule of faults over the whole system, and then the verdict.

Runs go on meanwhile. It prints what was done, what the system said of its runs, and every invariant that does not hold;
0 means that all do.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from chaos_invariants import broken_invariants
from chaos_world import FAULTS_OF, LIMITS, TASK, Fault, World, living, make_schedule

from fedops_mqtt import AsyncManagerClient
from fedops_mqtt.manager.client import ManagerClientError
from fedops_mqtt.runtime.background import alongside

POLL_S = 0.25
SETTLE_S = 600.0
"""After the last fault everything comes back; leases and back-offs of this world are a few seconds."""


async def chaos(seed: int, *, seconds: float, num_clients: int, folder: Path, profile: str = "single") -> list[str]:
    """Run one schedule; return the invariants that it broke."""
    schedule = make_schedule(seed, seconds=seconds, num_clients=num_clients, profile=profile)
    print(f"seed {seed}: {len(schedule)} faults in {seconds:g} s over {num_clients} clients", flush=True)
    async with living(folder, num_clients=num_clients, profile=profile) as world:
        async with alongside(_keep_running(world), name="runs"):
            await _let_happen(world, schedule)
        if not await _settle(world):
            return ["it does not come to rest"]
        await _tell_runs(world)
        return await broken_invariants(world)


async def _let_happen(world: World, schedule: Sequence[Fault]) -> None:
    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for fault in schedule:
            await asyncio.sleep(max(0.0, start + fault.at_s - time.monotonic()))
            group.create_task(_suffer(world, fault), name=f"fault-{fault.kind}")


async def _suffer(world: World, fault: Fault) -> None:
    print(fault if await world.suffer(fault) else f"{fault}  (skipped: in trouble already)", flush=True)


async def _keep_running(world: World) -> None:
    """Ask for a run whenever there is none."""
    async with AsyncManagerClient(f"http://{world.manager_address}", timeout_s=3) as api:
        while True:
            try:
                run = await api.start(TASK, join="open")
                print(f"          started {run.run_id}", flush=True)
            except ManagerClientError:
                pass  # there is a run, or the manager is down, or frozen: that is what we are here for
            await asyncio.sleep(POLL_S)


async def _settle(world: World) -> bool:
    """Wait until no run is under way and nobody trains; every run has its limits, so this ends."""
    deadline = time.monotonic() + LIMITS["run_s"] + SETTLE_S
    async with AsyncManagerClient(f"http://{world.manager_address}", timeout_s=60) as api:
        while time.monotonic() < deadline:
            if await _is_quiet(world, api):
                return True
            await asyncio.sleep(POLL_S)
    return False


async def _is_quiet(world: World, api: AsyncManagerClient) -> bool:
    try:
        runs, clients = await api.runs(), await api.clients()
    except ManagerClientError:
        return False
    is_over = all(run.outcome for run in runs)
    is_here = [client for client in clients if client.presence != "out" and client.run is None]
    return is_over and len(is_here) == len(world.macs) and not world.trainings() and not world.servers()


async def _tell_runs(world: World) -> None:
    async with AsyncManagerClient(f"http://{world.manager_address}", timeout_s=20) as api:
        for run in await api.runs():
            line = f"{run.run_id}: {run.outcome} after round {run.round}, {run.launch} launches"
            print(f"run {line}: {run.reason}", flush=True)


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--profile", choices=list(FAULTS_OF), default="single", help="what the world stands on")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="folder for everything that the processes said and kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedops-chaos-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run = chaos(
            options.seed,
            seconds=options.minutes * 60,
            num_clients=options.clients,
            folder=folder,
            profile=options.profile,
        )
        broken = asyncio.run(run)
    for sentence in broken:
        print(f"BROKEN: {sentence}")
    print(f"seed {options.seed}: {len(broken)} invariants broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
