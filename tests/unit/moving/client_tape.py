"""A speaker for tests of FedOps' calls."""

from typing import Any

from fedops_mqtt.protocol import MetricsKind, Outcome


class Tape:
    """A speaker that keeps what it is given: the narrow Protocol that the APIs ask for."""

    gl_model = 3
    server_ip = "10.0.0.1:8080"

    def __init__(self) -> None:
        self.told: list[tuple[MetricsKind, int, dict[str, Any]]] = []
        self.ends: list[tuple[Outcome, str | None]] = []
        self.has_left = False

    def publish_metrics(self, kind: MetricsKind, round_: int, values: dict[str, Any]) -> None:
        self.told.append((kind, round_, values))

    def end_training(self, outcome: Outcome, reason: str | None) -> None:
        self.ends.append((outcome, reason))

    def leave(self) -> None:
        self.has_left = True
