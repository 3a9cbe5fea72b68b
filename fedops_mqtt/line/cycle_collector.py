"""Frees models that Flower's own views keep in reference cycles, once enough bytes have gone by.

`RecordDict.array_records` (used by strategies and most apps) returns a view that refers to itself and to the record:
the arrays in it are freed by the cyclic collector only, which runs by number of objects, not by their size. Left alone,
a server of large models grows by all replies of many rounds.
"""

import gc

_LIMIT_BYTES = 128 * 1024 * 1024
"""A full collection takes 50 to 100 ms with flwr loaded: little against moving this many bytes."""


class CycleCollector:
    """Looks at a running count of bytes that were handed to foreign code; not for several threads at once."""

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._collected_at_bytes = 0

    def look(self, total_bytes: int) -> None:
        """Collect, if many bytes have gone by since the last time; `total_bytes` is the count since the start."""
        if total_bytes - self._collected_at_bytes >= self._limit_bytes:
            self._collected_at_bytes = total_bytes
            gc.collect()
