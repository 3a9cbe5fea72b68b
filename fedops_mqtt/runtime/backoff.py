"""Waits between attempts to reach another machine: growing, capped, and spread by chance."""

import random
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Full-jitter waits: each is drawn from 0 to a bound that doubles up to a cap, so that a fleet spreads out."""

    initial_s: float
    max_s: float
    draw: random.Random = field(default_factory=random.Random)
    _num_waits: int = 0

    def next_wait_s(self) -> float:
        """Return how long to wait before the next attempt."""
        bound = min(self.max_s, self.initial_s * 2 ** min(self._num_waits, 32))
        self._num_waits += 1
        return self.draw.uniform(0, bound)

    def reset(self) -> None:
        """Start again at the initial bound: the last attempt was a good one."""
        self._num_waits = 0
