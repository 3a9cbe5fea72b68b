"""What the doctor finds: one sentence each, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `advice` is empty where nothing has to be done."""

    check: str
    level: Level
    found: str
    advice: str = ""

    def as_record(self) -> dict[str, str]:
        """Return it for a program."""
        return {"check": self.check, "level": self.level.value, "found": self.found, "advice": self.advice}


def ok(check: str, found: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check=check, level=Level.OK, found=found)


def unknown(check: str, found: str) -> Finding:
    """Return that something could not be looked at from here."""
    return Finding(check=check, level=Level.UNKNOWN, found=found)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return that something works, but not for ever or not for everybody."""
    return Finding(check=check, level=Level.WARNING, found=found, advice=advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """Return that something does not work, or stands open."""
    return Finding(check=check, level=Level.PROBLEM, found=found, advice=advice)
