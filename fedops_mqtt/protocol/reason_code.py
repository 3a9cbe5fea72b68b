"""Codes of the reasons that programs decide by; the text beside a code is for people and decides nothing."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator


class ReasonCode(StrEnum):
    """A reason as one code, for programs; most reasons have none, and a reader takes an unknown code as absent."""

    INTERRUPTED = "interrupted"
    """The training was lost with its process, it did not fail: the client may be asked again."""
    BUSY = "busy"
    """The client trains another run: it may be asked again."""
    SHUTTING_DOWN = "shutting-down"
    """The daemon is about to end: its successor may be asked."""
    TOO_FEW_CLIENTS = "too-few-clients"
    """The FL server ended the run because it had too few clients; the manager adds who never joined."""

    APP_MALFORMED = "app-malformed"
    """The bundle is not one that `flwr build` makes, or it holds what a bundle may not hold."""
    APP_TOO_LARGE = "app-too-large"
    APP_DIGEST_MISMATCH = "app-digest-mismatch"
    APP_UNSIGNED = "app-unsigned"
    APP_UNKNOWN_SIGNER = "app-unknown-signer"
    APP_BAD_SIGNATURE = "app-bad-signature"
    APP_TOO_OLD = "app-too-old"
    APP_NOT_APPROVED = "app-not-approved"
    APP_NOT_DELIVERED = "app-not-delivered"
    """The device takes no delivered apps, or the transfer did not come to its end."""
    DEPENDENCIES_MISSING = "dependencies-missing"


_KNOWN = frozenset(ReasonCode)


def _known_or_none(value: Any) -> Any:
    """Return None for the code of a newer program: to a reader that does not know it, a reason has no code."""
    return None if isinstance(value, str) and value not in _KNOWN else value


KnownCode = Annotated[ReasonCode | None, BeforeValidator(_known_or_none)]
"""A received code; an unknown one counts as absent and does not make its message malformed."""
