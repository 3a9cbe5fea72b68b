"""A user's own program: data collection every 50 ms beside the federated client, in one event loop, as FedOps promises.

Prints one JSON line at its end: how late each beat was, while a run was being trained.
"""

import asyncio
import json
import time

from fedops_mqtt.client import FLClientTask

BEAT_S = 0.05


async def collect(client: FLClientTask, lateness_s: list[float]) -> None:
    due = time.monotonic()
    while True:
        due += BEAT_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if client.status.client_start:
            lateness_s.append(time.monotonic() - due)
        due = max(due, time.monotonic() - BEAT_S)


async def main() -> None:
    client = FLClientTask({}, "yard_apps:flat_out")
    lateness_s: list[float] = []
    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(collect(client, lateness_s), name="collect")
        await client.fl_client_start()
        collecting.cancel()
    print(json.dumps(lateness_s), flush=True)


asyncio.run(main())
