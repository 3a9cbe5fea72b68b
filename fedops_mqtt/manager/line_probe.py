"""Whether an FL server's line answers, asked by connecting to it."""

import asyncio
import time
from contextlib import suppress

from fedops_mqtt.runtime.machine import UNREACHABLE, split_address

TRIES = 3
"""One may fail at a full backlog, one on a busy machine."""


async def line_answers(address: str, *, within_s: float) -> bool:
    """Return whether a server's line at `host:port`, plain or TLS, answers one of three tries within `within_s`."""
    share_s = within_s / TRIES
    for _ in range(TRIES):
        began = time.monotonic()
        if await _answers(address, share_s):
            return True
        await asyncio.sleep(max(0.0, share_s - (time.monotonic() - began)))
    return False


async def _answers(address: str, timeout_s: float) -> bool:
    """Send a plain HTTP request; a TLS server ends the connection then, which is an answer too."""
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(*split_address(address))
            writer.write(b"GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
            await writer.drain()
            await reader.read(1)
            return True
    except ConnectionResetError:
        return writer is not None
    except UNREACHABLE:
        return False
    finally:
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
