"""The installed command at a terminal: what it draws is read as a person's terminal reads it."""

import asyncio
import fcntl
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from yard import COMMAND, eventually


class Terminal:
    """A pseudo-terminal with a process in it."""

    def __init__(self, process: asyncio.subprocess.Process, ours: int) -> None:
        self.process = process
        self.screen = bytearray()
        self._ours = ours

    async def until_shown(self, *words: str) -> None:
        """Read until all of these have been drawn."""

        def is_shown() -> bool:
            with suppress(BlockingIOError):
                self.screen.extend(os.read(self._ours, 65536))
            return all(word.encode() in self.screen for word in words)

        await eventually(is_shown)


@asynccontextmanager
async def at_a_terminal(*arguments: str, lines: int = 40, columns: int = 140) -> AsyncIterator[Terminal]:
    """`fedops-mqtt ARGUMENTS`, until the block ends."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = await asyncio.create_subprocess_exec(
        str(COMMAND), *arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    try:
        yield Terminal(process, ours)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
