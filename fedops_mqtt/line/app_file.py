"""The app bundle that an FL server hands out: one buffer for all clients, in ranges (RFC 9110, 14). Imports no flwr."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from fedops_mqtt.line import wire
from fedops_mqtt.line.errors import LineRefusedError

_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppPart:
    """What one request gets."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    num_bytes: int
    content: memoryview = field(repr=False)

    def chunks(self) -> Iterator[memoryview]:
        """Give the content in pieces; none is copied."""
        for at in range(0, self.num_bytes, wire.CHUNK_BYTES):
            yield self.content[at : at + wire.CHUNK_BYTES]


class ServedApp:
    """A bundle in memory; `digest` is its SHA-256."""

    def __init__(self, data: bytes) -> None:
        self.digest = hashlib.sha256(data).hexdigest()
        self._data = memoryview(data)

    def part(self, asked: str | None) -> AppPart:
        """Return what a `Range` header asks for; the whole where there is none, or one of another form.

        Raises:
            LineRefusedError: 416, the range begins behind the end.
        """
        whole = len(self._data)
        match = _RANGE.fullmatch(asked or "")
        if match is None:
            headers = ((b"accept-ranges", b"bytes"),)
            return AppPart(status=200, headers=headers, num_bytes=whole, content=self._data)
        first = int(match[1])
        last = min(int(match[2]), whole - 1) if match[2] else whole - 1
        if first >= whole or last < first:
            raise LineRefusedError(status=416, code="range", reason=f"the app has {whole} bytes, not {asked}")
        content = self._data[first : last + 1]
        headers = ((b"content-range", b"bytes %d-%d/%d" % (first, last, whole)),)
        return AppPart(status=206, headers=headers, num_bytes=len(content), content=content)
