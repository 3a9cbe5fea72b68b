"""The reports and endpoints of the table: what our programs say under FedOps' names, and what they serve."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from client_tape import Tape
from fastapi import FastAPI
from fedops_names import REPORTS, WORDS

from fedops_mqtt.bridge.api import make_api
from fedops_mqtt.bridge.peer_registry import CLIENT_KINDS, PeerRegistry
from fedops_mqtt.client.client_api import ClientServerAPI, publishing_through
from fedops_mqtt.client.client_fl import FLClient
from fedops_mqtt.client.client_utils import FLClientStatus
from fedops_mqtt.client.client_wandb import SYSTEM_FIELDS, client_system_wandb
from fedops_mqtt.client.http_shim import make_shim
from fedops_mqtt.protocol import MetricsKind

FIELDS = {row.name: set(row.fields) for row in REPORTS}
ME = ("t", "02:00:00:00:00:01", "pi")


class KerasLike:
    """As much of a compiled Keras model as is used."""

    def __init__(self) -> None:
        self.weights = [np.zeros(2)]

    def get_weights(self) -> list[Any]:
        return self.weights

    def set_weights(self, weights: list[Any]) -> None:
        self.weights = weights

    def fit(self, *_: Any, validation_split: float, **__: Any) -> Any:
        assert validation_split == 0.25
        return SimpleNamespace(history={name: [9.0, 1.0] for name in ("loss", "accuracy", "val_loss", "val_accuracy")})

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        return {"loss": 2.0, "accuracy": 0.5}


def test_a_round_has_the_fields_of_fedops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"x_train": [1, 2], "y_train": [1, 2], "x_test": [1], "y_test": [1]}
    client = FLClient(KerasLike(), 0.25, *ME, 1, 3, False, "", model_name="Net", model_type="Tensorflow", **data)
    with publishing_through(tape := Tape()):
        client.fit([np.ones(2)], {"cluster_id": 4})
        client.evaluate([np.ones(2)], {})
    (train, train_round, trained), (test, test_round, tested) = tape.told
    assert (train, train_round, test, test_round) == (MetricsKind.TRAIN_RESULT, 1, MetricsKind.TEST_RESULT, 1)
    assert set(trained) == FIELDS["client_perf/train_result"] | {"cluster_id"}
    assert set(tested) == FIELDS["client_perf/test_result"]
    assert (trained["cluster_id"], trained["train_loss"], trained["val_accuracy"], trained["gl_model_v"]) == (
        4,
        1,
        1,
        3,
    )
    assert (tested["test_loss"], tested["test_accuracy"]) == (2.0, 0.5)


def test_an_assignment_has_the_fields_of_fedops() -> None:
    with publishing_through(tape := Tape()):
        ClientServerAPI("t").put_cluster_assign(ME[1], 2)
    assert set(tape.told[0][2]) == FIELDS["FLSe/cluster"]


def test_wandb_samples_are_published_one_message_each_under_fedops_names(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [dict.fromkeys(SYSTEM_FIELDS, at + 0.5) for at in range(2)]
    asked: list[str] = []

    def runs(path: str) -> list[Any]:
        asked.append(path)
        other = SimpleNamespace(name="another", history=lambda **_: [{}])
        return [other, SimpleNamespace(name="mine", history=lambda *, stream, pandas: samples)]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Api=lambda: SimpleNamespace(runs=runs)))
    with publishing_through(tape := Tape()):
        client_system_wandb(*ME, 3, "mine", "me", "project")
        client_system_wandb(*ME, 3, "nobody's", "me", "project")
    assert asked == ["me/project"] * 2
    assert [kind for kind, _, _ in tape.told] == [MetricsKind.SYSTEM] * 2
    for _, _, values in tape.told:
        assert set(values) == FIELDS["client_perf/client_system"]
    assert [values["cpu_threads"] for _, _, values in tape.told] == [0.5, 1.5]


def test_a_wandb_that_cannot_be_asked_is_logged_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Api=refuse))
    with publishing_through(tape := Tape()):
        client_system_wandb(*ME, 3, "mine", "me", "project")
    assert tape.told == []
    assert "wandb has no system numbers" in caplog.text


def test_every_endpoint_of_the_table_is_served() -> None:
    desk = PeerRegistry(classic=None, server_at="", make_proxy=None)  # type: ignore[arg-type]
    shim = make_shim(view=FLClientStatus, start=None, managers=None)  # type: ignore[arg-type]
    served = served_by(make_api(desk)) | served_by(shim)
    assert [word.name for word in WORDS if word.kind == "endpoint" and word.name.rstrip("/") not in served] == []
    kinds = {name.partition("/")[2] for name in FIELDS if name.startswith("client_perf/")}
    assert kinds | {"xai_result"} == set(CLIENT_KINDS)


def served_by(app: FastAPI) -> set[str]:
    paths = app.openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
