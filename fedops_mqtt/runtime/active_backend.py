"""Who speaks for this process: FedOps' APIs are made without a handle to whoever does.

The one exception to "no module state": FedOps' constructors leave no other way. The last one that began speaks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Voice = TypeVar("Voice")


class ActiveBackend(Generic[Voice]):
    """Those that speak for this process; `nobody` is raised where there is none."""

    def __init__(self, nobody: type[Exception]) -> None:
        self._voices: list[Voice] = []
        self._nobody = nobody

    @contextmanager
    def speaking(self, voice: Voice) -> Iterator[None]:
        """Let this process's APIs speak through `voice` for as long as the block lasts."""
        self._voices.append(voice)
        try:
            yield
        finally:
            self._voices.remove(voice)

    def current(self) -> Voice:
        """Return who speaks.

        Raises:
            Exception: the `nobody` that was given; nobody speaks.
        """
        if not self._voices:
            raise self._nobody()
        return self._voices[-1]
