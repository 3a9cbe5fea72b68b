"""What acceptance tests of the line share: devices that are held in a round, what the server says, the model."""

from collections.abc import Iterable

import numpy as np
import psutil
from device_plan import SERVER as STARTER
from device_plan import DevicePlan
from reader import Json
from safetensors.numpy import load_file
from yard import Installed, Site

from fedops_mqtt.protocol import MemberCondition, Phase

APP = "steered:app"
PROGRAM = "line_program"
FIRST, SECOND, THIRD = (f"02:00:00:00:01:0{number}" for number in (1, 2, 3))


async def start_with_all(site: Site, device_plan: DevicePlan, clients: Iterable[str], **fields: object) -> str:
    """Start a run in whose first round all devices take part, and compute until they are told more."""
    device_plan.write({STARTER: 0})
    run_id = await site.start_run(**fields)
    await site.observer.until(lambda: all(member_status(site, mac) == MemberCondition.TRAINING for mac in clients))
    device_plan.write(dict.fromkeys(clients, 0))
    for mac in clients:
        await until_training(site, mac, 1)
    return run_id


async def until_phase(site: Site, mac: str, phase: Phase) -> None:
    """Wait until a device says that it is in this phase of a run."""

    def is_there() -> bool:
        view = site.observer.client(mac)
        return view is not None and view.status.run is not None and view.status.run.phase == phase

    await site.observer.until(is_there)


async def until_training(site: Site, mac: str, round_: int) -> None:
    """Wait until a device computes in this round."""

    def is_there() -> bool:
        view = site.observer.client(mac)
        run = view.status.run if view is not None else None
        return run is not None and (run.phase, run.round) == (Phase.TRAINING, round_)

    await site.observer.until(is_there)


def trainings(client: Installed) -> list[int]:
    """Return the training processes of a daemon."""
    return [
        child.pid
        for child in psutil.Process(client.process.pid).children()
        if "fedops_mqtt.training.process" in child.cmdline()
    ]


def member_status(site: Site, mac: str) -> MemberCondition | None:
    """Return what the FL server says of a client."""
    view = site.observer.server
    said = view.status.clients.get(mac) if view is not None else None
    return said.status if said is not None else None


def model_of(run: Json) -> np.ndarray:
    assert run.model_path is not None
    (array,) = load_file(run.model_path).values()
    return array
