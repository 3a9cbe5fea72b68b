"""Is there life at an address? Any byte in answer to an HTTP request is; a stopped process accepts and says nothing."""

import asyncio
from contextlib import suppress

PROBE_TIMEOUT_S = 5.0
PROBE_TRIES = 3
_BETWEEN_TRIES_S = 1.0


async def line_answers(address: str, *, timeout_s: float = PROBE_TIMEOUT_S, tries: int = PROBE_TRIES) -> bool:
    """Return whether a server's line at `host:port` answers, plain or TLS."""
    host, _, port = address.rpartition(":")
    for left in reversed(range(tries)):
        if await _answers(host.strip("[]"), int(port), timeout_s):
            return True
        if left:
            await asyncio.sleep(_BETWEEN_TRIES_S)
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
