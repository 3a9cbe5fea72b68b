"""The state that a strategy keeps from round to round, and the replacement of the model that it begins from.

A relaunched server, and the task's next run, load the state into a strategy of the same class. Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common import Parameters, bytes_to_ndarray, ndarray_to_bytes
from flwr.server.strategy import FedXgbBagging, FedXgbCyclic
from flwr.server.strategy import Strategy as ClassicStrategy
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedops_mqtt.aggregation.checkpoint import StateValue
from fedops_mqtt.aggregation.errors import UnfitStrategyError
from fedops_mqtt.aggregation.model_arrays import arrays_of, is_equal, load_into
from fedops_mqtt.line.records import open_npy
from fedops_mqtt.store.tensor_file import Arrays

AnyStrategy = Strategy | ClassicStrategy

REFUSED = {
    "FedAvgAndroid": "its tensors have no shapes: they are for Flower's Android clients, which use gRPC only",
    "FedXgbNnAvg": "it takes replies apart that no Flower message can carry; Flower has deprecated it",
}
"""Classic strategies of Flower that cannot run over the line, and why."""

_NPY = b"\x93NUMPY"
"""How a serialized numpy array begins; a tensor without it is kept as it is, a row of bytes."""
_RAW = ":bytes"
_RECORD, _BYTES, _PARAMETERS, _PAIRS = ":record", ":bytes", ":parameters", ":pairs"
_LIST, _OBJECT, _OWN = ":list", ":object", ":own:"
"""Between an attribute's path and (for `:own:`) the name that its `save_state` gave: what the value was."""
_Scalar = bool | int | float | str | None


class StrategyState:
    """What one strategy keeps; made before its first round, so that what has changed since is known."""

    def __init__(self, strategy: AnyStrategy) -> None:
        self._strategy = strategy
        self._begun = {key: _digest(form) for key, form in self._forms()}

    @property
    def class_names(self) -> str:
        """The strategy's class and, in order, those of the strategies that it wraps: whose state this is."""
        return " ".join(f"{type(owner).__module__}.{type(owner).__qualname__}" for _, owner in parts(self._strategy))

    def capture(self) -> dict[str, StateValue]:
        """Return a copy of what the strategy keeps.

        A strategy with `save_state() -> dict` (arrays, lists and dicts of arrays, numbers) and `load_state(dict)` has
        it itself. Of the others every attribute is taken that has changed since and holds arrays, a number, a text or
        a list or dict of them, or that has `state_dict` and `load_state_dict` of JSON values (Flower's privacy
        accountants).
        """
        state: dict[str, StateValue] = {}
        for path, owner in parts(self._strategy):
            if callable(save := getattr(owner, "save_state", None)):
                state |= {f"{path}{_OWN}{name}": _copied(value) for name, value in dict(save()).items()}
        for key, (form, value) in self._forms():
            if self._begun.get(key) != _digest((form, value)):
                state[key + form] = value
        return state

    def restore(self, state: Mapping[str, StateValue]) -> None:
        """Give a strategy of the same class back what `capture` took."""
        owners = dict(parts(self._strategy))
        own: dict[str, dict[str, StateValue]] = {}
        for key, value in state.items():
            path, is_own, name = key.partition(_OWN)
            if is_own:
                own.setdefault(path, {})[name] = value
                continue
            path, _, name = key.rpartition(".")
            attribute, _, form = name.partition(":")
            _put(owners[f"{path}." if path else ""], attribute, form, value)
        for path, kept in own.items():
            owners[path].load_state(kept)  # type: ignore[union-attr]

    def _forms(self) -> Iterator[tuple[str, tuple[str, StateValue]]]:
        for path, owner in parts(self._strategy):
            if not callable(getattr(owner, "save_state", None)):
                for name, value in list(vars(owner).items()):
                    if (form := _form_of(value)) is not None:
                        yield path + name, form


def parts(strategy: AnyStrategy) -> list[tuple[str, AnyStrategy]]:
    """Return a strategy and those that it wraps (such as differential privacy), each with the path that leads to it."""
    found = [("", strategy)]
    waiting = list(found)
    while waiting:
        path, owner = waiting.pop(0)
        inner = [(f"{path}{name}.", each) for name, each in vars(owner).items() if isinstance(each, AnyStrategy)]
        new = [
            (at, each) for at, each in inner if all(each is not known for _, known in found)
        ]  # it may know its wrapper
        found += new
        waiting += new
    return found


def check_strategy(strategy: AnyStrategy) -> None:
    """Refuse a strategy that cannot run over the line.

    Raises:
        UnfitStrategyError: it is one of `REFUSED`.
    """
    for _, owner in parts(strategy):
        for each in type(owner).__mro__:
            if each.__module__.startswith("flwr.") and each.__name__ in REFUSED:
                raise UnfitStrategyError(type(strategy).__name__, REFUSED[each.__name__])


def begin_from(strategy: AnyStrategy, arrays: Arrays, *, instead_of: Sequence[Arrays], is_stored: bool) -> None:
    """Make a strategy begin from this model: each copy that it keeps of one of `instead_of` is replaced.

    A copy is found by its values: parameters, records, lists and dicts of arrays, all of them in one row, torch models.
    `is_stored`: the model is of an earlier run or launch; trees that were bagged there are bagged on.

    Raises:
        UnfitStrategyError: it keeps a copy in a form that cannot be replaced.
    """
    before = [list(each.values()) for each in instead_of]
    for _, owner in parts(strategy):
        for name, value in list(vars(owner).items()):
            values = _values_of(value)
            if values and any(_is_copy(values, each) for each in before):
                try:
                    setattr(owner, name, _made_like(value, arrays, strategy))
                except (TypeError, ValueError, AttributeError) as error:
                    kind = f"{type(value).__name__} {name!r}"
                    problem = f"it keeps a copy of its first model in its {kind}, which cannot be replaced ({error})"
                    raise UnfitStrategyError(type(owner).__name__, problem) from error
        if is_stored and isinstance(owner, FedXgbBagging | FedXgbCyclic):
            owner.global_model = b"".join(to_parameters(arrays, strategy).tensors) or None


def first_models(strategy: AnyStrategy) -> list[Arrays]:
    """Return the initial parameters that a classic strategy, and each that it wraps, was made with."""
    own = [getattr(owner, "initial_parameters", None) for _, owner in parts(strategy)]
    return [to_arrays(each) for each in own if isinstance(each, Parameters)]


def to_arrays(parameters: Parameters, names: Sequence[str] = (), *, are_views: bool = False) -> Arrays:
    """Return classic parameters as arrays; a tensor that is no numpy array (trees of XGBoost) as a row of bytes.

    Without `names`, the arrays are numbered, and the name of a row of bytes ends in `:bytes`. Views are read-only and
    take no memory of their own; copies are for code that may write into them.
    """
    read = open_npy if are_views else bytes_to_ndarray
    arrays: Arrays = {}
    for at, tensor in enumerate(parameters.tensors):
        is_array = tensor.startswith(_NPY)
        name = names[at] if len(names) == len(parameters.tensors) else f"{at}{'' if is_array else _RAW}"
        arrays[name] = read(tensor) if is_array else np.frombuffer(tensor, np.uint8)
    return arrays


def to_parameters(arrays: Arrays, strategy: AnyStrategy) -> Parameters:
    """Return arrays as parameters for this strategy: the reverse of `to_arrays`."""
    has_trees = any(isinstance(owner, FedXgbBagging | FedXgbCyclic) for _, owner in parts(strategy))
    raw = [
        array.dtype == np.uint8 and array.ndim == 1 and (has_trees or name.endswith(_RAW))
        for name, array in arrays.items()
    ]
    tensors = [
        array.tobytes() if is_raw else ndarray_to_bytes(array)
        for array, is_raw in zip(arrays.values(), raw, strict=True)
    ]
    return Parameters(tensors=[each for each in tensors if each], tensor_type="" if any(raw) else "numpy.ndarray")


def record_of(arrays: Arrays) -> ArrayRecord:
    """Return the arrays as Flower's messages carry them."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def arrays_in(record: ArrayRecord, *, are_views: bool = False) -> Arrays:
    """Return a record's arrays, copies or views; what is no numpy array as a row of bytes (`to_arrays`)."""
    names = list(record)
    tensors = [bytes(array.data) for array in record.values() if array.data or array.shape]
    return to_arrays(Parameters(tensors=tensors, tensor_type=""), names, are_views=are_views)


def _is_copy(first: Sequence[NDArray[Any]], second: Sequence[NDArray[Any]]) -> bool:
    """Return whether the values are the same, in a list or in one row."""
    if len(first) == 1 and first[0].ndim == 1 and len(second) > 1 and all(a.dtype.kind in "biuf" for a in second):
        return is_equal(first[0], np.concatenate([array.ravel() for array in second]))
    return len(first) == len(second) and all(map(is_equal, first, second))


def _digest(form: tuple[str, StateValue]) -> bytes:
    """Return what differs when a value does; a copy of a model would take as much memory again."""
    kind, value = form
    digest = hashlib.blake2b(f"{kind}{type(value)}".encode(), digest_size=16)
    if isinstance(value, np.ndarray | list | dict):
        arrays = value if isinstance(value, dict) else dict(enumerate(value if isinstance(value, list) else [value]))
        for name, array in arrays.items():
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    else:
        digest.update(repr(value).encode("utf-8", "surrogatepass"))
    return digest.digest()


def _values_of(value: object) -> list[NDArray[Any]] | None:
    """Return the arrays that an attribute holds; None where it holds no arrays."""
    if isinstance(value, Parameters):
        return list(to_arrays(value).values())
    if isinstance(value, ArrayRecord):
        return list(arrays_in(value).values())
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, list | tuple | Mapping):
        items = list(value.values() if isinstance(value, Mapping) else value)
        is_arrays = items and all(isinstance(item, np.ndarray) or hasattr(item, "detach") for item in items)
        return list(arrays_of(items).values()) if is_arrays else None
    if callable(getattr(value, "load_state_dict", None)) or callable(getattr(value, "set_weights", None)):
        try:
            return list(arrays_of(value).values())
        except (TypeError, ValueError):  # no model, but perhaps an optimizer's state
            return None
    return None


def _made_like(value: Any, arrays: Arrays, strategy: AnyStrategy) -> Any:
    """Return the model in the form of `value`, an earlier one."""
    values = list(arrays.values())
    match value:
        case Parameters():
            return to_parameters(arrays, strategy)
        case ArrayRecord():
            return record_of(dict(zip(value, values, strict=True)))
        case np.ndarray():
            return values[0].copy() if len(values) == 1 else np.concatenate([array.ravel() for array in values])
        case list() | tuple():
            return type(value)(_like(old, new) for old, new in zip(value, values, strict=True))
        case Mapping():
            pairs = zip(value.items(), values, strict=True)
            return type(value)({name: _like(old, new) for (name, old), new in pairs})  # type: ignore[call-arg]
    return load_into(value, arrays)


def _like(old: Any, new: NDArray[Any]) -> Any:
    """Return an array as numpy's, or as torch's where `old` is a tensor."""
    return new.copy() if isinstance(old, np.ndarray) else old.new_tensor(new)


def _form_of(value: Any) -> tuple[str, StateValue] | None:
    """Return what to add to an attribute's name, and a copy of it that can be kept; None for what is no state."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return "", value
    match value:
        case ArrayRecord():
            return _RECORD, arrays_in(value)
        case Parameters():
            return _PARAMETERS, {**to_arrays(value), f"{len(value.tensors)}:{value.tensor_type}": np.zeros(0)}
        case bytes():
            return _BYTES, np.frombuffer(value, np.uint8)
        case np.ndarray():
            return "", value.copy()
        case list() | dict() if value:
            return _form_of_many(value)
    return _form_of_object(value)


def _form_of_many(value: list[Any] | dict[Any, Any]) -> tuple[str, StateValue] | None:
    items = value.values() if isinstance(value, dict) else value
    if all(isinstance(item, np.ndarray) for item in items):
        return "", _copied(value)
    if isinstance(value, dict) and all(isinstance(item, _Scalar) for pair in value.items() for item in pair):
        return _PAIRS, json.dumps(list(value.items()))
    if isinstance(value, list) and all(isinstance(item, _Scalar) for item in value):
        return _LIST, json.dumps(value)
    return None


def _form_of_object(value: Any) -> tuple[str, StateValue] | None:
    if not callable(getattr(value, "state_dict", None)) or not callable(getattr(value, "load_state_dict", None)):
        return None
    try:
        return _OBJECT, json.dumps(value.state_dict())
    except TypeError:  # a torch model: whether it is state or a tool cannot be known here
        return None


def _put(owner: AnyStrategy, name: str, form: str, value: Any) -> None:
    """Set an attribute to what `_form_of` made of it."""
    match f":{form}" if form else "":
        case str(kind) if kind == _RECORD:
            value = record_of(value)
        case str(kind) if kind == _PARAMETERS:
            *tensors, (last, _) = value.items()
            made = [
                a.tobytes() if n.endswith(_RAW) and a.dtype == np.uint8 else ndarray_to_bytes(a) for n, a in tensors
            ]
            value = Parameters(tensors=made, tensor_type=last.partition(":")[2])
        case str(kind) if kind == _BYTES:
            value = value.tobytes()
        case str(kind) if kind == _PAIRS:
            value = dict(json.loads(value))
        case str(kind) if kind == _LIST:
            value = json.loads(value)
        case str(kind) if kind == _OBJECT:
            getattr(owner, name).load_state_dict(json.loads(value))
            return
    setattr(owner, name, value)


def _copied(value: StateValue) -> StateValue:
    """A strategy may change its arrays in place while they are written."""
    match value:
        case np.ndarray():
            return value.copy()
        case list():
            return [np.array(array) for array in value]
        case dict():
            return {name: np.array(array) for name, array in value.items()}
    return value
