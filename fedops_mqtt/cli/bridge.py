"""The verb for FedOps' programs that stay as they are: the bridge runs in the foreground until it is told to end."""

import asyncio

from fedops_mqtt.cli.examples import shows
from fedops_mqtt.cli.fatal import FatalError
from fedops_mqtt.cli.options import takes_settings
from fedops_mqtt.runtime.exit_codes import ExitCode
from fedops_mqtt.runtime.logs import start_logging, warn_of_exposed_files
from fedops_mqtt.runtime.settings import BridgeSettings


@shows(
    "fedops-mqtt bridge --broker mqtt://broker.local:1883",
    "fedops-mqtt bridge --clients http://192.168.1.20:8003,02:00:00:00:00:02=http://192.168.1.21:8003 "
    "--http 192.168.1.10:8004 --grpc-gateways 192.168.1.10:8080",
    model=BridgeSettings,
)
@takes_settings(BridgeSettings)
def bridge(settings: BridgeSettings) -> None:
    """Speak on the bus for FedOps clients and servers that know only HTTP and gRPC.

    To a FedOps client it is its client manager, server manager and performance service; the first line on stdout is
    the URL for all three.
    """
    start_logging(settings.log_level)
    warn_of_exposed_files(settings)
    from fedops_mqtt.bridge.app import BridgeConfigError, run_bridge
    from fedops_mqtt.bus import BrokerUrlError
    from fedops_mqtt.runtime.http_access import ExposedError

    try:
        asyncio.run(run_bridge(settings, say=lambda sentence: print(sentence, flush=True)))
    except (BridgeConfigError, ExposedError, BrokerUrlError) as error:
        raise FatalError(str(error), ExitCode.CONFIG) from error
    except OSError as error:
        raise FatalError(
            f"the bridge cannot listen on {settings.http}: {error.strerror}", ExitCode.UNAVAILABLE
        ) from error
