"""What is kept of an untrusted stream: whole lines up to a length, or its last lines; memory stays bounded."""

from collections.abc import Iterator


class LineSplitter:
    """Turns chunks into lines; a line over `max_bytes` is dropped and counted, and does not disturb the next."""

    def __init__(self, max_bytes: int) -> None:
        self.num_dropped = 0
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._is_skipping = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that `chunk` completes, without their newline."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = self._take(end)
            if line is not None:
                yield line
        if self._is_skipping or len(self._rest) + len(rest) > self._max_bytes:
            self._is_skipping = True
            self._rest.clear()
        else:
            self._rest += rest

    def _take(self, end: bytes) -> bytes | None:
        is_too_long = self._is_skipping or len(self._rest) + len(end) > self._max_bytes
        line = bytes(self._rest) + end
        self._rest.clear()
        self._is_skipping = False
        self.num_dropped += is_too_long
        return None if is_too_long else line


class Tail:
    """Keeps the last lines of a stream, and of those the last `max_bytes`."""

    def __init__(self, *, max_lines: int, max_bytes: int) -> None:
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._kept = b""

    def feed(self, chunk: bytes) -> None:
        """Take in a chunk."""
        self._kept = (self._kept + chunk)[-self._max_bytes :]

    @property
    def text(self) -> str:
        """The last lines as text; bytes that are no UTF-8 are replaced, control characters are taken out."""
        lines = self._kept.decode(errors="replace").replace("\r", "\n").splitlines()
        kept = [line for line in lines if line.strip()][-self._max_lines :]
        return "\n".join("".join(char for char in line if char.isprintable() or char == "\t") for line in kept)
