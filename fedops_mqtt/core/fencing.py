"""Fencing: every word of an owner carries a stamp, and only a higher one than the last taken is news."""

from typing import NamedTuple, Protocol

from fedops_mqtt.protocol import LAST_SEQ as LAST_SEQ


class Stamped(Protocol):
    """Whatever carries an epoch and a seq."""

    @property
    def epoch(self) -> int:
        """Grows with every CONNECT of the owner."""
        ...

    @property
    def seq(self) -> int:
        """Grows with every word within an epoch."""
        ...


class Stamp(NamedTuple):
    """Order of an owner's words: first by connection, then within it."""

    epoch: int
    seq: int


def stamp_of(word: Stamped) -> Stamp:
    """Return the stamp of a word."""
    return Stamp(word.epoch, word.seq)


def is_newer(word: Stamped, than: Stamped | None) -> bool:
    """Return whether a word is news to a reader who last took `than`."""
    return than is None or stamp_of(word) > stamp_of(than)
