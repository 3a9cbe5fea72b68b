"""A user's program as FedOps documents it: a configuration, an app, FLClientTask; and a data collection beside it.

Usage: client_main.py start|beside TASK MAC BROKER_URL STATE_DIR. Prints how many beats of 50 ms there were.
"""

import asyncio
import sys

from fedops_mqtt.client import FLClientTask

beats = 0


async def collect() -> None:
    global beats
    while True:
        beats += 1
        await asyncio.sleep(0.05)


async def beside(client: FLClientTask) -> None:
    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(collect(), name="collect")
        await client.fl_client_start()
        collecting.cancel()
    print(f"beats {beats}", flush=True)


if __name__ == "__main__":
    mode, task_id, mac, broker, state_dir = sys.argv[1:]
    cfg = {"task_id": task_id, "batch_size": 32, "wandb": {"use": False}}
    client = FLClientTask(cfg, "fl_apps:counting", mac=mac, broker=broker, state_dir=state_dir, partition_id=3)
    if mode == "start":
        client.start()
    else:
        asyncio.run(beside(client))
