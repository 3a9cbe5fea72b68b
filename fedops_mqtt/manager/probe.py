"""Is there life at an address? Any byte in answer to an HTTP request is; a stopped process accepts and says nothing."""

import asyncio
import time
from contextlib import suppress

TRIES = 3
"""One may be lost to a full backlog, one to a busy machine."""


async def line_answers(address: str, *, within_s: float) -> bool:
    """Return whether a server's line at `host:port`, plain or TLS, answers one of three tries within `within_s`."""
    host, _, port = address.rpartition(":")
    share_s = within_s / TRIES
    for _ in range(TRIES):
        began = time.monotonic()
        if await _answers(host.strip("[]"), int(port), share_s):
            return True
        await asyncio.sleep(max(0.0, share_s - (time.monotonic() - began)))
    return False


async def _answers(host: str, port: int, timeout_s: float) -> bool:
    """A TLS server ends the connection on a plain request, which is an answer too."""
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
            await writer.drain()
            await reader.read(1)
            return True
    except ConnectionResetError:
        return writer is not None
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
