"""The verbs that run in the foreground until they are ended: broker, client, manager, bridge."""

import asyncio
import gc
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer
from click import UsageError

from fedops_mqtt.cli import daemon
from fedops_mqtt.cli.options import shows, takes_settings
from fedops_mqtt.cli.output import FatalError
from fedops_mqtt.runtime.logs import start_logging, warn_of_exposed_files
from fedops_mqtt.runtime.settings import BrokerSettings, ClientSettings, ManagerSettings
from fedops_mqtt.runtime.systemd import ExitCode

if TYPE_CHECKING:
    from fedops_mqtt.bus import Mosquitto
    from fedops_mqtt.manager.leader import Front


from fedops_mqtt.runtime.settings import BridgeSettings

BUNDLE_SERVER = "fedops_mqtt.server.bundle_server"
"""Runs the ServerApp of a published app; the manager, which starts it, imports nothing of the FL server."""

SWITCH_S = 0.0005
"""Longest turn of the manager's other threads while its loop waits: at each read from a socket the loop lets go of the
interpreter, and a journal that is busy would keep it for Python's 5 ms."""

GC_THRESHOLDS = (50_000, 20, 50)
"""Garbage is collected when so many more objects exist (Python: 700): a fleet of thousands that all publish something
new makes that many objects and no garbage, and each collection stops the loop."""


@shows("fedops-mqtt broker", "fedops-mqtt broker --port 0 --data-dir ./broker-data")
@takes_settings(BrokerSettings)
def broker(settings: BrokerSettings) -> None:
    """Run mosquitto, ready configured, in the foreground.

    The first line on stdout is its URL. The shipped configuration listens on this machine only, without passwords.
    """
    code = asyncio.run(_run_broker(settings))
    if code:
        raise FatalError(
            f"mosquitto ended with status {code}; its own lines above are the reason.", ExitCode.UNAVAILABLE
        )


@shows(
    "fedops-mqtt client --task-id digits --app fedops_mqtt.demo:client_app --broker mqtt://broker.local:1883",
    "fedops-mqtt client --task-id digits --app my_task:app --http 127.0.0.1:8003 --mac 02:00:00:00:00:01",
    model=ClientSettings,
)
@takes_settings(ClientSettings)
def client(settings: ClientSettings) -> None:
    """Run the daemon of this device.

    It publishes its status, waits for a start trigger, and trains in a process of its own.
    """
    if settings.task_id is None or settings.app is None:
        raise UsageError("a client needs --task-id TASK and --app MODULE:ATTRIBUTE")
    if os.name == "posix":
        daemon.become(settings)
    start_logging(settings.log_level)
    from fedops_mqtt.client import run_client

    raise SystemExit(asyncio.run(run_client(settings)))


@shows(
    "fedops-mqtt manager --tasks tasks.toml",
    "fedops-mqtt manager --broker mqtt://broker.local:1883 --http 127.0.0.1:8004",
    model=ManagerSettings,
)
@takes_settings(ManagerSettings)
def manager(
    settings: ManagerSettings,
    end_servers: Annotated[
        bool, typer.Option("--end-servers", help="On leaving, stop active runs and their FL servers; else they go on.")
    ] = False,
) -> None:
    """Run the manager.

    It watches the fleet, starts FL servers, fires triggers and closes runs.
    """
    start_logging(settings.log_level)
    warn_of_exposed_files(settings)
    import uvloop

    from fedops_mqtt.manager.app import run_manager

    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        life = run_manager(
            settings,
            bundle_server=BUNDLE_SERVER,
            ends_servers=end_servers,
            print_line=_print_line,
            front=_front(),
        )
        raise SystemExit(runner.run(life))


def _front() -> "Front | None":
    """Return the page, where what it is built with is installed."""
    if find_spec("nicegui") is None:
        return None
    # NiceGUI takes a second to import: now, not when this manager takes over.
    from fedops_mqtt.dashboard import client_page, fleet_page, run_page, sites_page, task_page  # noqa: F401
    from fedops_mqtt.dashboard.front import page

    return page


def _print_line(sentence: str) -> None:
    print(sentence, flush=True)


async def _run_broker(settings: BrokerSettings) -> int:
    from fedops_mqtt.bus import Mosquitto
    from fedops_mqtt.runtime.systemd import on_end_signal

    is_ending = asyncio.Event()
    mosquitto = Mosquitto(
        config=settings.broker_config,
        port=settings.broker_port,
        data_dir=settings.broker_data_dir,
        is_log_shown=True,
    )
    with on_end_signal(lambda number: is_ending.set()):
        return await _serve(mosquitto, is_ending)


async def _serve(mosquitto: "Mosquitto", is_ending: asyncio.Event) -> int:
    async with mosquitto:
        print(mosquitto.url, flush=True)
        async with asyncio.TaskGroup() as group:
            signalled = group.create_task(is_ending.wait(), name="broker-signalled-to-end")
            ended = group.create_task(mosquitto.wait(), name="broker-ended")
            await asyncio.wait((signalled, ended), return_when=asyncio.FIRST_COMPLETED)
            signalled.cancel()
            ended.cancel()
        return 0 if is_ending.is_set() or ended.cancelled() else ended.result()


@shows(
    "fedops-mqtt bridge --broker mqtt://broker.local:1883",
    "fedops-mqtt bridge --clients http://192.168.1.20:8003,02:00:00:00:00:02=http://192.168.1.21:8003 "
    "--http 192.168.1.10:8004 --grpc-gateways 192.168.1.10:8080",
    model=BridgeSettings,
)
@takes_settings(BridgeSettings)
def bridge(settings: BridgeSettings) -> None:
    """Publish on the bus for FedOps clients and servers that know only HTTP and gRPC.

    To a FedOps client it is its client manager, server manager and performance service; the first line on stdout is
    the URL for all three.
    """
    start_logging(settings.log_level)
    warn_of_exposed_files(settings)
    from fedops_mqtt.bridge.app import BridgeConfigError, run_bridge
    from fedops_mqtt.bus import BrokerUrlError
    from fedops_mqtt.runtime.machine import AccessConfigError

    try:
        asyncio.run(run_bridge(settings, on_listening=lambda sentence: print(sentence, flush=True)))
    except (BridgeConfigError, AccessConfigError, BrokerUrlError) as error:
        raise FatalError(str(error), ExitCode.CONFIG) from error
    except OSError as error:
        raise FatalError(
            f"the bridge cannot listen on {settings.http}: {error.strerror}", ExitCode.UNAVAILABLE
        ) from error
