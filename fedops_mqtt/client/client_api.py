"""FedOps' two client APIs, with FedOps' signatures; what FedOps sends over HTTP, they publish on the bus.

Callers make them without naming a daemon, so a process has one `ClientBackend`: its daemon, or the one it trains for.
"""

import json
from collections.abc import Mapping
from typing import Any

from fedops_mqtt.protocol import MetricsKind, Outcome, count_of
from fedops_mqtt.runtime.task_config import flatten
from fedops_mqtt.training.client_backend import ClientBackend, NoActiveBackendError, current_backend, publishing_through

__all__ = [
    "ClientBackend",
    "ClientManagerAPI",
    "ClientMangerAPI",
    "ClientServerAPI",
    "InfoAnswer",
    "NoActiveBackendError",
    "publishing_through",
]


class InfoAnswer:
    """What FedOps reads from the answer to `/info`: `.json()["GL_Model_V"]`."""

    status_code = 200

    def __init__(self, gl_model: int) -> None:
        self._gl_model = gl_model

    def json(self) -> dict[str, int]:
        """Return the fields of the answer."""
        return {"GL_Model_V": self._gl_model}


class _Ends:
    """What either API reports of the current training, and of this client as a whole."""

    def get_client_out(self) -> None:
        """Leave (`/flclient_out`): what trains is interrupted, then client-out is given."""
        current_backend().leave()

    def get_train_fin(self) -> None:
        """Report that the current training is finished (`/trainFin`)."""
        current_backend().end_training(Outcome.FINISHED, None)

    def get_train_fail(self, reason: str | None = None) -> None:
        """Report that the current training has failed (`/trainFail`)."""
        current_backend().end_training(Outcome.FAILED, reason or "reported by the client's program")


class ClientManagerAPI(_Ends):
    """What a client reports to its manager (FedOps client_api.ClientMangerAPI)."""

    def get_info(self) -> InfoAnswer:
        """Return the global model's number as the last start or its client manager gave it (`/info`)."""
        return InfoAnswer(current_backend().gl_model)


ClientMangerAPI = ClientManagerAPI
"""FedOps' own spelling."""


class ClientServerAPI(_Ends):
    """What a client asks of FedOps' server manager and reports to its performance server (FedOps client_api).

    A result is JSON text of one object, or a mapping; its fields keep their names. Nested ones are joined by dots.
    """

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id

    def get_port(self) -> str | None:
        """Return `host:port` of the FL server of the last start (`FLSe/getPort`); None before the first."""
        return current_backend().server_ip

    def put_train_result(self, train_result_json: str | Mapping[str, Any]) -> None:
        """Publish what a round's training gave (`client_perf/train_result`)."""
        _publish(MetricsKind.TRAIN_RESULT, train_result_json)

    def put_test_result(self, test_result_json: str | Mapping[str, Any]) -> None:
        """Publish what a round's evaluation gave (`client_perf/test_result`)."""
        _publish(MetricsKind.TEST_RESULT, test_result_json)

    def put_client_time_result(self, client_time_result_json: str | Mapping[str, Any]) -> None:
        """Publish how long the training took (`client_perf/client_time_result`)."""
        _publish(MetricsKind.TIME_RESULT, client_time_result_json)

    def put_client_system(self, client_system_json: str | Mapping[str, Any]) -> None:
        """Publish how the device did (`client_perf/client_system`)."""
        _publish(MetricsKind.SYSTEM, client_system_json)

    def put_client_xai_result(self, xai_result_json: str | Mapping[str, Any]) -> None:
        """Publish what an explanation gave (`client_perf/xai_result`)."""
        _publish(MetricsKind.DATA, xai_result_json)

    def put_cluster_assign(self, client_mac: str, cluster_id: int | None) -> None:
        """Publish which cluster a client belongs to (`FLSe/cluster`)."""
        cluster = None if cluster_id is None else int(cluster_id)
        _publish(MetricsKind.DATA, {"client_mac": client_mac, "cluster_id": cluster})


def _publish(kind: MetricsKind, given: str | Mapping[str, Any]) -> None:
    result = json.loads(given) if isinstance(given, str | bytes) else given
    if not isinstance(result, Mapping):
        raise ValueError(f"a result is one JSON object, not {type(result).__name__}")
    current_backend().publish_metrics(kind, count_of(result.get("round")), flatten(result))
