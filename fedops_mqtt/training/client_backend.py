"""What publishes for FedOps' client APIs in this process: its daemon, or in a training process the daemon behind it."""

from typing import Protocol

from fedops_mqtt.protocol import MetricsKind, Outcome
from fedops_mqtt.runtime.active_backend import ActiveBackend
from fedops_mqtt.runtime.task_config import Scalar


class NoActiveBackendError(RuntimeError):
    """There is no client in this process."""

    def __init__(self) -> None:
        super().__init__(
            "no client runs in this process: FedOps' APIs publish through an FLClientTask, from when it serves, and "
            "through a training that it has started"
        )


class ClientBackend(Protocol):
    """What publishes for the client of this process; every method returns at once, from any thread."""

    @property
    def gl_model(self) -> int:
        """Number of the global model that the last start gave."""
        ...

    @property
    def server_ip(self) -> str | None:
        """`host:port` of the FL server of the last start."""
        ...

    def publish_metrics(self, kind: MetricsKind, round_: int, values: dict[str, Scalar]) -> None:
        """Publish one metrics message."""
        ...

    def end_training(self, outcome: Outcome, reason: str | None) -> None:
        """Report how the current training ended."""
        ...

    def leave(self) -> None:
        """Leave: what trains is interrupted, then client-out is published."""
        ...


_active: ActiveBackend[ClientBackend] = ActiveBackend(NoActiveBackendError)
publishing_through = _active.publishing_through
current_backend = _active.current
