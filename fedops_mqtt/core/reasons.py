"""Reasons that decide something: one side writes them, the other looks how a reason begins."""

INTERRUPTED = "interrupted"
"""Of a training whose process was lost with its daemon: the client may be asked again."""
STOPPED = "stopped"
"""Of a start that was stopped before it came."""
BUSY = "busy"
"""Of a client that trains another run."""
SHUTTING_DOWN = "shutting down"
"""Of a daemon that is about to leave."""

TOO_FEW = "too few clients"
"""Of a run that its FL server ended for want of clients: who never came to it is named beside."""

PASSING = (BUSY, SHUTTING_DOWN)
"""How the reason of a rejection begins that ends by itself: the client may be asked again."""


def is_interruption(reason: str | None) -> bool:
    """Return whether a reason means that the training was lost with its process, not that it failed."""
    return reason is not None and reason.startswith(INTERRUPTED)
