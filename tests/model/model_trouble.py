"""What may befall the parts of a schedule, and how often each of it does, relative to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_device import LONGEST_LEFTOVER_S, TASK, Device
from model_manager import Database, Manager

from fedops_mqtt.core.run_member import StopRequested
from fedops_mqtt.protocol import Outcome

if TYPE_CHECKING:
    from model_world import World

YEAR_S = 365.25 * 86400


@dataclass(frozen=True)
class Fault:
    """One kind of trouble and how often it comes, relative to the others."""

    weight: float
    strike: Callable[[World], None]


def _device(world: World) -> Device:
    return world.kernel.rng.choice(world.devices)


def _kill_daemon(world: World) -> None:
    device = _device(world)
    if device.daemon is not None:
        device.daemon.die()
    world.kernel.soon(0.0, 40.0, device.start)


def _stop_daemon(world: World) -> None:
    device = _device(world)
    if device.daemon is not None:
        device.daemon.leave()
    world.kernel.soon(0.0, 40.0, device.start)


def _lose_folder(world: World) -> None:
    device = _device(world)
    if device.daemon is not None:
        device.daemon.die()
    device.lose_state()
    device.disk.skew_s = world.kernel.rng.choice([0.0, -10 * YEAR_S])
    world.kernel.soon(LONGEST_LEFTOVER_S, LONGEST_LEFTOVER_S + 30.0, device.start)


def _set_clock(world: World) -> None:
    """A device without a battery wakes up in 1970 and is set right later."""
    _device(world).disk.skew_s = world.kernel.rng.choice([0.0, -50 * YEAR_S, 1.5 * YEAR_S])


def _cut_device(world: World) -> None:
    device = _device(world)
    if device.daemon is not None:
        device.daemon.line.cut(world.will_delay())


def _fail_training(world: World) -> None:
    daemon = _device(world).daemon
    if daemon is not None and daemon.training is not None:
        daemon.training.ender(Outcome.FAILED, "ValueError: no data")()


def _kill_server(world: World) -> None:
    for server in list(world.serving.values()):
        server.exit("killed by SIGKILL")


def _cut_server(world: World) -> None:
    for server in list(world.serving.values()):
        server.line.cut(world.will_delay())


def _kill_manager(world: World) -> None:
    for manager in list(world.managers):
        manager.die()
    world.kernel.soon(0.0, 30.0, lambda: world.managers.append(Manager(world)) if not world.managers else None)


def _add_standby(world: World) -> None:
    if len(world.managers) < 2:
        world.managers.append(Manager(world))


def _freeze_manager(world: World) -> None:
    leader = world.leader()
    if leader is not None and not leader.is_frozen and not world.is_file_lease:
        leader.is_frozen = True
        _add_standby(world)
        world.kernel.soon(1.0, 60.0, leader.thaw)


def _cut_manager(world: World) -> None:
    leader = world.leader()
    if leader is not None and leader.line is not None:
        leader.line.cut(world.will_delay())


def _lose_database(world: World) -> None:
    for manager in list(world.managers):
        manager.die()
    world.database = Database()
    world.kernel.soon(1.0, 20.0, lambda: world.managers.append(Manager(world)) if not world.managers else None)


def _stop_run(world: World) -> None:
    leader = world.leader()
    active = leader.open_runs.active(TASK) if leader is not None else None
    if leader is not None and active is not None:
        leader.report(active.run_id, StopRequested("asked for"))


def _stop_broker(how: str) -> Callable[[World], None]:
    def strike(world: World) -> None:
        world.kernel.note(f"broker {how}")
        world.broker.stop(how, world.kernel.rng.uniform(0.1, 40.0))

    return strike


def _lose_node(world: World) -> None:
    world.broker.lose_node()


FAULTS = [
    Fault(4, _kill_daemon),
    Fault(2, _stop_daemon),
    Fault(1, _lose_folder),
    Fault(1, _set_clock),
    Fault(4, _cut_device),
    Fault(1, _fail_training),
    Fault(3, _kill_server),
    Fault(2, _cut_server),
    Fault(3, _kill_manager),
    Fault(2, _add_standby),
    Fault(2, _freeze_manager),
    Fault(2, _cut_manager),
    Fault(0.5, _lose_database),
    Fault(1, _stop_run),
    Fault(2, _stop_broker("shutdown")),
    Fault(2, _stop_broker("killed")),
    Fault(1, _stop_broker("wiped")),
    Fault(1, _lose_node),
]
