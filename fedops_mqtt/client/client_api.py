"""FedOps' two APIs of a client, called as FedOps' are; what they said over HTTP becomes messages on the bus.

They are made without a handle, so a process has one `ClientBackend` for them: its daemon, or the daemon it trains for.
"""

import json
from collections.abc import Mapping
from typing import Any

from fedops_mqtt.protocol import MetricsKind, Outcome, count_of
from fedops_mqtt.runtime.task_config import flatten
from fedops_mqtt.training.client_backend import ClientBackend, NoActiveBackendError, current_speaker, speaking

__all__ = [
    "ClientBackend",
    "ClientManagerAPI",
    "ClientMangerAPI",
    "ClientServerAPI",
    "InfoAnswer",
    "NoActiveBackendError",
    "speaking",
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
    """What either API says of the training in hand, and of this client as a whole."""

    def get_client_out(self) -> None:
        """Leave (`/flclient_out`): what trains is interrupted, then client-out is said."""
        current_speaker().leave()

    def get_train_fin(self) -> None:
        """Say that the training in hand is finished (`/trainFin`)."""
        current_speaker().end_training(Outcome.FINISHED, None)

    def get_train_fail(self, reason: str | None = None) -> None:
        """Say that the training in hand has failed (`/trainFail`)."""
        current_speaker().end_training(Outcome.FAILED, reason or "the client's program said so")


class ClientManagerAPI(_Ends):
    """What a client says to its manager (FedOps client_api.ClientMangerAPI)."""

    def get_info(self) -> InfoAnswer:
        """Return the global model's number as the last start or its client manager gave it (`/info`)."""
        return InfoAnswer(current_speaker().gl_model)


ClientMangerAPI = ClientManagerAPI
"""FedOps' own spelling."""


class ClientServerAPI(_Ends):
    """What a client asks of FedOps' server manager and tells its performance server (FedOps client_api).

    A result is JSON text of one object, or a mapping; its fields keep their names. Nested ones are joined by dots.
    """

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id

    def get_port(self) -> str | None:
        """Return `host:port` of the FL server of the last start (`FLSe/getPort`); None before the first."""
        return current_speaker().server_ip

    def put_train_result(self, train_result_json: str | Mapping[str, Any]) -> None:
        """Publish what a round's training gave (`client_perf/train_result`)."""
        _tell(MetricsKind.TRAIN_RESULT, train_result_json)

    def put_test_result(self, test_result_json: str | Mapping[str, Any]) -> None:
        """Publish what a round's evaluation gave (`client_perf/test_result`)."""
        _tell(MetricsKind.TEST_RESULT, test_result_json)

    def put_client_time_result(self, client_time_result_json: str | Mapping[str, Any]) -> None:
        """Publish how long the training took (`client_perf/client_time_result`)."""
        _tell(MetricsKind.TIME_RESULT, client_time_result_json)

    def put_client_system(self, client_system_json: str | Mapping[str, Any]) -> None:
        """Publish how the device did (`client_perf/client_system`)."""
        _tell(MetricsKind.SYSTEM, client_system_json)

    def put_client_xai_result(self, xai_result_json: str | Mapping[str, Any]) -> None:
        """Publish what an explanation gave (`client_perf/xai_result`)."""
        _tell(MetricsKind.DATA, xai_result_json)

    def put_cluster_assign(self, client_mac: str, cluster_id: int | None) -> None:
        """Publish which cluster a client belongs to (`FLSe/cluster`)."""
        cluster = None if cluster_id is None else int(cluster_id)
        _tell(MetricsKind.DATA, {"client_mac": client_mac, "cluster_id": cluster})


def _tell(kind: MetricsKind, said: str | Mapping[str, Any]) -> None:
    result = json.loads(said) if isinstance(said, str | bytes) else said
    if not isinstance(result, Mapping):
        raise ValueError(f"a result is one JSON object, not {type(result).__name__}")
    current_speaker().tell(kind, count_of(result.get("round")), flatten(result))
