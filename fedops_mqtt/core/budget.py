"""How much of something each client may use: so much a second, and some of it at once."""

from collections.abc import Hashable

_KEPT = 10_000
"""Keys at which those that have used nothing of late are let go."""


class Budget:
    """A token bucket for each key; the caller's clock, s, never goes back.

    Args:
        per_s: what is added a second.
        at_once: what a key has at first, and at most.
    """

    def __init__(self, *, per_s: float, at_once: float) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._left: dict[Hashable, tuple[float, float]] = {}
        self._tidy_at = _KEPT

    def take(self, key: Hashable, cost: float, *, now: float) -> bool:
        """Use some of what a key has left; False, and nothing used, where that is not enough."""
        left, at = self._left.get(key, (self._at_once, now))
        left = min(self._at_once, left + (now - at) * self._per_s)
        is_enough = cost <= left
        self._left[key] = (left - cost if is_enough else left, now)
        if len(self._left) >= self._tidy_at:
            self._left = {
                each: (left, at)
                for each, (left, at) in self._left.items()
                if left + (now - at) * self._per_s < self._at_once
            }
            self._tidy_at = max(_KEPT, 2 * len(self._left))
        return is_enough
