"""The manager's clock: seconds of the epoch that never step back, comparable with those of an earlier process.

Anchored once to the wall clock (and above the last time in the journal), then driven by the monotonic clock.
"""

import time


class Clock:
    """Seconds since 1970 as this process counts them.

    Args:
        not_before: the latest time an earlier process wrote down, s; a wall clock that was set back is overruled.
    """

    def __init__(self, *, not_before: float = 0.0) -> None:
        self._offset = max(time.time(), not_before) - time.monotonic()

    def now(self) -> float:
        """Return the time now, s; never less than any earlier answer."""
        return time.monotonic() + self._offset
