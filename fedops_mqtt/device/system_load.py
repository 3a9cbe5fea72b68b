"""The load of this device while it trains, measured from outside of the training process and sent as metrics.

Field names are FedOps' (`client_system`), for its dashboards and spreadsheets. An idle daemon measures nothing.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedops_mqtt.protocol import CurrentRun, MetricsKind
from fedops_mqtt.training.pipe import MetricsReport

if TYPE_CHECKING:
    from fedops_mqtt.device.load_meter import LoadMeter

_FIRST_S = 0.7
"""Between two looks at an idle client, and until the first reading: short runs are to be seen too."""


async def measure_load(
    *, run: Callable[[], CurrentRun | None], tell: Callable[[MetricsReport], None], interval_s: float
) -> None:
    """Measure every `interval_s` while there is a run in hand, for ever; the first time within a second or two."""
    meter: LoadMeter | None = None
    has_told = False
    while True:
        await asyncio.sleep(interval_s if has_told else min(_FIRST_S, interval_s))
        active_training = run()
        if active_training is None:
            meter, has_told = None, False
        elif meter is None:
            meter = _start_meter()
        else:
            values = await asyncio.to_thread(meter.read)
            tell(MetricsReport(kind=MetricsKind.SYSTEM, round=active_training.round, values=dict(values)))
            has_told = True


def _start_meter() -> "LoadMeter":
    """Import the meter only now: its psutil is a megabyte that an idle daemon does without."""
    from fedops_mqtt.device.load_meter import LoadMeter

    return LoadMeter()
