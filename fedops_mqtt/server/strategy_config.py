"""A strategy out of a configuration, as Hydra's `instantiate` makes one: `_target_` names the class it is of.

What FedOps gives every strategy beside that (the first model, the clients' configuration) it gets where it takes it.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import Strategy as ClassicStrategy
from flwr.serverapp.strategy import Strategy

from fedops_mqtt.aggregation.errors import ServerConfigError
from fedops_mqtt.runtime.task_config import entry
from fedops_mqtt.store.tensor_file import Arrays

_TARGET, _PARTIAL, _ARGUMENTS = "_target_", "_partial_", "_args_"
_HYDRAS_OWN = {_TARGET, _PARTIAL, _ARGUMENTS, "_convert_", "_recursive_"}
_STRATEGY = "server.strategy"


def strategy_of(
    cfg: Any,
    *,
    initial: Arrays | None,
    fit_config: Callable[[int], dict[str, Any]],
    evaluate_config: Callable[[int], dict[str, Any]],
) -> Strategy | ClassicStrategy | None:
    """Return the strategy that `server.strategy` of a configuration describes; None where it describes none.

    Raises:
        ServerConfigError: there is no such class, it does not take what it is given, or it is no strategy.
    """
    described = entry(cfg, _STRATEGY) if cfg is not None else None
    if described is None or entry(described, _TARGET) is None:
        return None
    given: dict[str, Any] = {"on_fit_config_fn": fit_config, "on_evaluate_config_fn": evaluate_config}
    if initial is not None:
        given["initial_parameters"] = ndarrays_to_parameters(list(initial.values()))
    made = _make(described, given)
    if not isinstance(made, Strategy | ClassicStrategy):
        raise ServerConfigError(
            f"{_STRATEGY}._target_ {entry(described, _TARGET)} made {type(made).__name__}, no strategy"
        )
    return made


def instantiate(value: Any) -> Any:
    """Return what a described value stands for: mappings with `_target_` are made, at any depth, others are dicts.

    Raises:
        ServerConfigError: a class is not found, or does not take what it is given.
    """
    if isinstance(value, str | bytes) or value is None:
        return value
    if callable(getattr(value, "items", None)):
        return _make(value, {}) if value.get(_TARGET) is not None else {k: instantiate(v) for k, v in value.items()}
    if hasattr(value, "__iter__"):
        return [instantiate(each) for each in value]
    return value


def _make(described: Any, given: Mapping[str, Any]) -> Any:
    entries = dict(described.items())
    target = str(entries[_TARGET])
    make = _find(target)
    arguments = [instantiate(each) for each in entries.get(_ARGUMENTS) or ()]
    keywords = {name: instantiate(value) for name, value in entries.items() if name not in _HYDRAS_OWN}
    keywords = {**{name: value for name, value in given.items() if _takes(make, name)}, **keywords}
    if entries.get(_PARTIAL):
        return lambda *more, **others: make(*arguments, *more, **{**keywords, **others})
    try:
        return make(*arguments, **keywords)
    except TypeError as error:
        raise ServerConfigError(f"{target} does not take what the configuration gives it: {error}") from error


def _find(target: str) -> Callable[..., Any]:
    """Import the longest part that is a module, then look the rest up in it: there is no colon, as in Hydra."""
    parts = target.split(".")
    for at in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:at]))
        except ModuleNotFoundError as error:
            if error.name and not ".".join(parts[:at]).startswith(error.name):
                raise ServerConfigError(
                    f"_target_ {target}: it imports {error.name!r}, which is not installed"
                ) from error
            continue
        for name in parts[at:]:
            if not hasattr(found, name):
                raise ServerConfigError(f"_target_ {target}: {found.__name__} has no {name!r}")
            found = getattr(found, name)
        if not callable(found):
            raise ServerConfigError(f"_target_ {target} is {type(found).__name__}, nothing that can be called")
        make: Callable[..., Any] = found
        return make
    raise ServerConfigError(f"_target_ {target}: no module {parts[0]!r} is installed or beside the program")


def _takes(make: Callable[..., Any], name: str) -> bool:
    """Return whether a class takes a keyword, by itself or through a `**kwargs` for the classes above."""
    if not isinstance(make, type):
        return name in inspect.signature(make).parameters
    for each in make.__mro__:
        own = each.__dict__.get("__init__")
        if own is None:
            continue
        parameters = inspect.signature(own).parameters
        if name in parameters:
            return True
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return False
    return False
