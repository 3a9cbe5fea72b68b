"""What FedOps' APIs of this process publish through: they are made without a handle to it.

The one exception to "no module state": FedOps' constructors leave no other way. The last one that began counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Backend = TypeVar("Backend")


class ActiveBackend(Generic[Backend]):
    """The backends of this process; `nobody` is raised where there is none."""

    def __init__(self, nobody: type[Exception]) -> None:
        self._backends: list[Backend] = []
        self._nobody = nobody

    @contextmanager
    def publishing_through(self, backend: Backend) -> Iterator[None]:
        """Have this process's APIs publish through `backend` for as long as the block lasts."""
        self._backends.append(backend)
        try:
            yield
        finally:
            self._backends.remove(backend)

    def current(self) -> Backend:
        """Return the backend in use.

        Raises:
            Exception: the `nobody` that was given: there is no backend.
        """
        if not self._backends:
            raise self._nobody()
        return self._backends[-1]
