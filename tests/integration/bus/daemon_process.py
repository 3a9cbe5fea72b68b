"""A client's status owner as a process of its own, to be killed: says `up` on stdout once it is announced."""

import asyncio
import sys

from bus_helpers import PATIENCE_S, Daemon


async def main(url: str, task_id: str) -> None:
    daemon = Daemon(task_id)
    async with daemon.on(url, client_id="daemon"):
        if await daemon.owner.flush(PATIENCE_S):
            print("up", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
