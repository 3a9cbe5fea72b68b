"""The load of this device while it trains, measured from outside of the training process and sent as metrics.

Field names are FedOps' (`client_system`), for its dashboards and spreadsheets. An idle daemon measures nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from fedops_mqtt.protocol import CurrentRun, MetricsKind, name_error
from fedops_mqtt.training.pipe import MetricsReport

logger = logging.getLogger(__name__)

_FIRST_S = 0.7
"""Between two looks at an idle client, and until the first reading: short runs are to be seen too."""


class Meter(Protocol):
    """What measures (a `LoadMeter`)."""

    def read(self) -> Mapping[str, float]:
        """Return the load since the last reading, by FedOps' names."""
        ...


def start_load_meter() -> Meter:
    """Import the meter only now: its psutil is a megabyte that an idle daemon does without."""
    from fedops_mqtt.device.load_meter import LoadMeter

    return LoadMeter()


async def measure_load(
    *,
    run: Callable[[], CurrentRun | None],
    publish: Callable[[MetricsReport], None],
    interval_s: float,
    start_meter: Callable[[], Meter] = start_load_meter,
) -> None:
    """Measure every `interval_s` while a run is trained; the first time within a second or two.

    It ends only where this system cannot be measured, after one warning.
    """
    meter: Meter | None = None
    has_reported = False
    while True:
        await asyncio.sleep(interval_s if has_reported else min(_FIRST_S, interval_s))
        active_training = run()
        if active_training is None:
            meter, has_reported = None, False
            continue
        try:
            if meter is None:
                meter = await asyncio.to_thread(start_meter)
                continue
            values = await asyncio.to_thread(meter.read)
        except Exception as error:  # psutil on a system that it does not know, or may not look at
            logger.warning("the system load cannot be measured", extra={"problem": name_error(error)})
            return
        publish(MetricsReport(kind=MetricsKind.SYSTEM, round=active_training.round, values=dict(values)))
        has_reported = True
