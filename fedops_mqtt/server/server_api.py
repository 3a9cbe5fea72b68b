"""FedOps' `ServerAPI`, by its names: what it sent over HTTP to server manager and performance pod goes on the bus.

Numbers keep the names that the caller gives them; texts and lists have no place in metrics and are left out.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from fedops_mqtt.aggregation.status_publisher import ServerSnapshot
from fedops_mqtt.protocol import MetricsCutter, ServerCondition, ServerMetrics, count_of, number_of, utc_now
from fedops_mqtt.runtime.active_backend import ActiveBackend

_log = logging.getLogger(__name__)


class ServerBackend(Protocol):
    """What publishes for the server (a `ServerStatusPublisher`)."""

    @property
    def snapshot(self) -> ServerSnapshot:
        """The status that would be published right now."""
        ...

    def update(self, *, is_urgent: bool = True, **changes: Any) -> None:
        """Change the snapshot and publish it."""
        ...

    def publish_metrics(self, metrics: ServerMetrics) -> None:
        """Publish metrics."""
        ...


class NoActiveServerError(RuntimeError):
    """There is no FL server in this process."""

    def __init__(self) -> None:
        super().__init__(
            "no FL server runs in this process: FedOps' ServerAPI publishes through an FLServer, while that runs"
        )


_active: ActiveBackend[ServerBackend] = ActiveBackend(NoActiveServerError)
publishing_through = _active.publishing_through


class ServerAPI:
    """FedOps server_api.ServerAPI: JSON text or a mapping in, a status or metrics on the bus out.

    It publishes through the FLServer of this process, or the `backend` that it is given.

    Raises:
        NoActiveServerError: there is neither.
    """

    def __init__(self, task_id: str, backend: ServerBackend | None = None) -> None:
        self.task_id = task_id
        self._backend = backend or _active.current()
        self._cutter = MetricsCutter(_log.warning)

    def put_server_status(self, server_status_json: str | Mapping[str, Any]) -> None:
        """Publish the server's status; of FedOps' fields `FLSeReady` and `GL_Model_V` have a meaning here.

        `FLSeReady` false means that the server failed (FedOps server.app.FLServer.start).
        """
        fields = _mapping(server_status_json)
        changes: dict[str, Any] = {}
        if "GL_Model_V" in fields:
            changes["gl_model"] = count_of(fields["GL_Model_V"])
        if "FLSeReady" in fields:
            changes["status"] = ServerCondition.READY if fields["FLSeReady"] else ServerCondition.FAILED
        self._backend.update(**changes)

    def put_gl_model_evaluation(self, gl_model_evaluation_json: str | Mapping[str, Any]) -> None:
        """Publish the evaluation of one round (`round`, `gl_loss`, `gl_accuracy`, `run_time_by_round`, …)."""
        fields = _mapping(gl_model_evaluation_json)
        duration_s = number_of(fields.get("run_time_by_round"))
        self._publish_metrics(fields, duration_s=None if duration_s is None else float(duration_s))

    def put_server_time_result(self, server_time_result_json: str | Mapping[str, Any]) -> None:
        """Publish how long the whole run took (`server_operation_time`, s)."""
        self._publish_metrics(_mapping(server_time_result_json))

    def put_fl_round_fin(self) -> None:
        """Publish that the run is over (FedOps' name for a run's end)."""
        self._backend.update(status=ServerCondition.FINISHED)

    def _publish_metrics(self, fields: Mapping[str, Any], duration_s: float | None = None) -> None:
        now = self._backend.snapshot
        self._backend.publish_metrics(
            ServerMetrics(
                task_id=self.task_id,
                run_id=now.run_id,
                launch=now.launch,
                round=count_of(fields.get("round"), count_of(now.round)),
                metrics=self._cutter.cut_numbers({name: value for name, value in fields.items() if name != "round"}),
                duration_s=duration_s,
                gl_model=count_of(fields.get("gl_model_v"), count_of(now.gl_model)),
                at=utc_now(),
            )
        )


def _mapping(fields: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what FedOps passes as JSON text.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    found = json.loads(fields) if isinstance(fields, str) else fields
    if not isinstance(found, Mapping):
        raise ValueError(f"expected a JSON object, not {type(found).__name__}")
    return found
