"""A daemon as a process of its own, for tests; settings come from the environment.

SIGUSR1 writes one JSON line to stdout: resident memory, and which of the heavy modules were imported.
"""

import asyncio
import json
import os
import signal
import sys

from fedops_mqtt.client import run_client
from fedops_mqtt.runtime.logs import start_logging
from fedops_mqtt.runtime.settings import ClientSettings

HEAVY = {"flwr", "torch", "wandb", "numpy", "grpc", "sqlalchemy"}


def tell(*_: object) -> None:
    with open("/proc/self/statm") as statm:
        rss_bytes = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    print(json.dumps({"rss_mb": rss_bytes / 2**20, "heavy": sorted(HEAVY & set(sys.modules))}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, tell)
    start_logging("INFO")
    sys.exit(asyncio.run(run_client(ClientSettings())))
