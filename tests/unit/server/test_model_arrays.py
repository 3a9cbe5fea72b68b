from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedops_mqtt.aggregation.errors import ModelMismatchError, ModelTypeError
from fedops_mqtt.aggregation.model_arrays import arrays_of, check_same_shapes, load_into
from fedops_mqtt.server.server_utils import load_initial_parameters_from_shape, model_download_local
from fedops_mqtt.server.typed_model import make_evaluate
from fedops_mqtt.store.versions import ModelStore

ONE, TWO = np.ones(2), np.arange(3.0)


class KerasLike:
    def __init__(self) -> None:
        self.weights = [ONE, TWO]

    def get_weights(self) -> list[Any]:
        return self.weights

    def set_weights(self, weights: list[Any]) -> None:
        self.weights = weights

    def evaluate(self, x: Any, y: Any, verbose: int) -> tuple[float, float]:
        return float(sum(w.sum() for w in self.weights)), float(x == y)


class NumPyLike:
    def get_parameters(self, config: dict[str, Any]) -> list[Any]:
        return [ONE, TWO]


class Tensor:
    """As much of a trained torch tensor as is used."""

    def __init__(self, values: Any, is_detached: bool = False) -> None:
        self.values, self.is_detached = values, is_detached

    def detach(self) -> "Tensor":
        return Tensor(self.values, True)

    def cpu(self) -> "Tensor":
        return self

    def numpy(self) -> Any:
        assert self.is_detached
        return self.values


class TorchLike:
    def state_dict(self) -> dict[str, Any]:
        return {"0": Tensor(ONE), "1": Tensor(TWO)}


@pytest.mark.parametrize(
    "model",
    [
        [ONE, TWO],
        {"0": ONE, "1": TWO},
        ArrayRecord({"0": Array(ONE), "1": Array(TWO)}),
        KerasLike(),
        NumPyLike(),
        TorchLike(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_arrays_are_found_in_whatever_is_called_a_model(model: Any) -> None:
    arrays = arrays_of(model)
    assert list(arrays) == ["0", "1"]
    np.testing.assert_equal(list(arrays.values()), [ONE, TWO])


def test_what_holds_no_arrays_is_named() -> None:
    with pytest.raises(ModelTypeError, match="cannot take arrays from a int"):
        arrays_of(3)


def test_arrays_go_back_into_lists_mappings_and_objects() -> None:
    arrays = {"0": TWO, "1": ONE}
    np.testing.assert_equal(load_into([ONE, TWO], arrays), [TWO, ONE])
    assert load_into({"0": ONE}, arrays) == arrays
    model = KerasLike()
    assert load_into(model, arrays) is model
    np.testing.assert_equal(model.weights, [TWO, ONE])
    with pytest.raises(ModelTypeError):
        load_into(3, arrays)


def test_differences_between_models_are_named() -> None:
    with pytest.raises(ModelMismatchError, match=r"V1 .*it has no 'b'.*'a' is \(2,\) there and \(3,\) here") as raised:
        check_same_shapes("V1", {"a": ONE}, {"a": TWO, "b": ONE})
    assert len(raised.value.differences) == 2


def test_fedops_evaluation_of_keras_models() -> None:
    evaluate = make_evaluate(KerasLike(), cfg=None, gl_val_loader=None, x_val=1, y_val=1, test_torch=None)
    assert evaluate is not None
    assert evaluate(1, {"0": ONE, "1": ONE}) == {"loss": 4.0, "accuracy": 1.0}


def test_fedops_evaluation_with_test_torch() -> None:
    def test_torch(model: Any, loader: Any, cfg: Any) -> Any:
        return float(model[0].sum()), 0.5, {"f1": loader + cfg}

    evaluate = make_evaluate([ONE], cfg=1, gl_val_loader=2, x_val=None, y_val=None, test_torch=test_torch)
    assert evaluate is not None
    assert evaluate(1, {"0": ONE}) == {"loss": 2.0, "accuracy": 0.5, "f1": 3}


def test_nothing_to_evaluate_with_is_no_evaluation() -> None:
    assert make_evaluate([ONE], cfg=None, gl_val_loader=None, x_val=None, y_val=None, test_torch=None) is None


def test_the_newest_model_of_a_folder_is_loaded_by_fedops_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_download_local("Tensorflow", KerasLike()) == (None, None, 0)
    for times in (5, 6):
        ModelStore(".", task_id="t", model_name="net").save({"0": ONE * times, "1": TWO})
    for path in (tmp_path / "t").iterdir():
        path.rename(tmp_path / path.name)
    model, name, version = model_download_local("Tensorflow", KerasLike())
    assert (name, version, model.weights[0].tolist()) == ("net", 2, [6.0, 6.0])
    with pytest.raises(ValueError, match="another model"):
        model_download_local("Sklearn", object())


def test_zeros_in_the_shapes_of_a_file(tmp_path: Any) -> None:
    path = tmp_path / "shapes.json"
    path.write_text("[[2, 3], [4]]")
    assert [array.shape for array in load_initial_parameters_from_shape(str(path))] == [(2, 3), (4,)]
