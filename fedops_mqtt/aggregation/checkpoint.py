"""What a relaunched server needs to go on with its run after the last whole round: model, round, strategy's state.

One file a run, replaced at every round. At the run's end it is removed, unless it holds state of a strategy: the next
run begins with that, and removes it when it has saved its own. Nothing in it is pickled.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedops_mqtt.aggregation.errors import NonFiniteModelError, ServerError, UnsupportedStateError
from fedops_mqtt.aggregation.model_arrays import are_equal, check_same_shapes, nonfinite_in
from fedops_mqtt.aggregation.run_settings import RunPlan
from fedops_mqtt.protocol import RunOutcome, check_run_id, check_task_id
from fedops_mqtt.store.errors import CorruptFileError, StoreError
from fedops_mqtt.store.final_status import FINAL_STATUS_SUFFIX, RUN_FOLDER
from fedops_mqtt.store.folder import open_folder
from fedops_mqtt.store.tensor_file import SUFFIX, Arrays, check_storable, read_tensors, write_tensors
from fedops_mqtt.store.versions import ModelStore, StoredModel

_log = logging.getLogger(__name__)

_SUFFIXES = (SUFFIX, FINAL_STATUS_SUFFIX)
_MODEL = "model/"
_STATE = "strategy/"

StateValue = NDArray[Any] | list[NDArray[Any]] | dict[str, NDArray[Any]] | bool | int | float | str | None
"""What can be kept of a strategy: arrays by themselves, in a list or by name, numbers and texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A run after `round` whole rounds."""

    run_id: str
    launch: int
    round: int
    gl_model: int
    """The version that the run is going to be saved as."""
    arrays: Arrays
    strategy: Mapping[str, StateValue] = field(default_factory=dict)
    strategy_class: str = ""
    """Whose state that is (`StrategyState.class_names`)."""
    strategy_rounds: int = 0
    """Rounds that the state has seen, those of the task's earlier runs among them."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last round's."""


class CheckpointStore:
    """The checkpoints of one task's runs, next to its models."""

    def __init__(self, url: str, *, task_id: str) -> None:
        self._folder = open_folder(f"{url.rstrip('/')}/{check_task_id(task_id)}/{RUN_FOLDER}")

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep this checkpoint in the place of the run's last one.

        Raises:
            OSError: the place cannot be written to; the last one is still whole.
        """
        arrays, layout = _flatten(checkpoint.strategy)
        arrays |= {_MODEL + name: array for name, array in checkpoint.arrays.items()}
        facts = {
            "run_id": checkpoint.run_id,
            "launch": checkpoint.launch,
            "round": checkpoint.round,
            "gl_model": checkpoint.gl_model,
            "strategy": layout,
            "strategy_class": checkpoint.strategy_class,
            "strategy_rounds": checkpoint.strategy_rounds,
            "metrics": dict(checkpoint.metrics),
        }
        self._folder.replace(_name(checkpoint.run_id), lambda path: write_tensors(path, arrays, facts))

    def load(self, run_id: str) -> Checkpoint | None:
        """Return the run's last checkpoint; None where there is none, or (logged) where it is corrupt."""
        name = _name(run_id)
        try:
            with self._folder.reading(name) as path:
                arrays, facts = read_tensors(path, shown_as=str(self._folder.locate(name)))
            return _checkpoint(arrays, facts)
        except FileNotFoundError:
            return None
        except CorruptFileError as error:
            _log.warning("checkpoint passed over", extra={"path": error.path, "problem": error.problem})
        except KeyError as error:  # whole, but another kind of file under this name
            problem = f"it is no checkpoint, it has no {error}"
            _log.warning("checkpoint passed over", extra={"path": str(self._folder.locate(name)), "problem": problem})
        return None

    def remove(self, run_id: str) -> None:
        """Remove the run's checkpoint, if there is one."""
        self._folder.remove(_name(run_id))

    def remove_others(self, *run_ids: str) -> None:
        """Remove the files of all other runs, final statuses too: a task has one run at a time, so those have ended.

        Raises:
            OSError: the place cannot be read or written to.
        """
        kept = {check_run_id(run_id) + suffix for run_id in run_ids for suffix in _SUFFIXES}
        for name in self._folder.names():
            if name.endswith(_SUFFIXES) and name not in kept:
                self._folder.remove(name)


def _checkpoint(arrays: Arrays, facts: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        run_id=facts["run_id"],
        launch=facts["launch"],
        round=facts["round"],
        gl_model=facts["gl_model"],
        arrays={name.removeprefix(_MODEL): array for name, array in arrays.items() if name.startswith(_MODEL)},
        strategy={key: _value(arrays, entry) for key, entry in facts["strategy"].items()},
        strategy_class=facts.get("strategy_class", ""),
        strategy_rounds=facts.get("strategy_rounds", facts["round"]),
        metrics=facts["metrics"],
    )


def _name(run_id: str) -> str:
    return check_run_id(run_id) + SUFFIX


def _flatten(state: Mapping[str, StateValue]) -> tuple[Arrays, dict[str, Any]]:
    """Return the state's arrays under names of their own, and the JSON that describes how to put them together."""
    arrays: Arrays = {}
    layout: dict[str, Any] = {}
    for at, (key, value) in enumerate(state.items()):
        prefix = f"{_STATE}{at}/"
        match value:
            case dict():
                layout[key] = {"kind": "dict", "at": at, "names": list(value)}
                arrays |= {f"{prefix}{i}": array for i, array in enumerate(value.values())}
            case list():
                layout[key] = {"kind": "list", "at": at, "length": len(value)}
                arrays |= {f"{prefix}{i}": array for i, array in enumerate(value)}
            case np.ndarray():
                layout[key] = {"kind": "array", "at": at}
                arrays[f"{prefix}0"] = value
            case bool() | int() | float() | str() | None:
                layout[key] = {"kind": "number", "value": value}
            case _:  # a strategy's own `save_state` may return anything
                raise UnsupportedStateError(key, type(value).__name__)
    return arrays, layout


def _value(arrays: Arrays, entry: Mapping[str, Any]) -> StateValue:
    if entry["kind"] == "number":
        plain: StateValue = entry["value"]
        return plain
    prefix = f"{_STATE}{entry['at']}/"
    match entry["kind"]:
        case "dict":
            return {name: arrays[f"{prefix}{i}"] for i, name in enumerate(entry["names"])}
        case "list":
            return [arrays[f"{prefix}{i}"] for i in range(entry["length"])]
    return arrays[f"{prefix}0"]


class CheckpointWriter:
    """One run's writer; `close` waits for what is being written. Used by one thread."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._writing: threading.Thread | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write; what is in it stays as it is from now on."""
        self.close()
        self._writing = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint", daemon=True)
        self._writing.start()

    def close(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._store.save(checkpoint)
        except (ServerError, StoreError, OSError) as error:  # a full disk: the run itself is not worse off
            _log.error("checkpoint was not saved", extra={"round": checkpoint.round, "problem": str(error)})


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """The model to begin with, and how far the run is."""

    arrays: Arrays | None
    """None: the strategy asks a client for its model (classic strategies only)."""
    done: int
    """Whole rounds of this run that earlier launches did."""
    gl_model: int
    """The version that this run is saved as."""
    last_gl_model: int
    """The newest version there is; 0 where there is none."""
    first: Arrays | None
    """The model that the run itself began with: the newest version, else the program's."""
    checkpoint: Checkpoint | None = None
    saved: StoredModel | None = None
    """This very run's model: the launch before died between saving and publishing it."""
    previous: Checkpoint | None = None
    """What the run that made `first` left of its strategy."""


def find_starting_point(
    plan: RunPlan,
    *,
    store: ModelStore,
    checkpoints: CheckpointStore,
    initial: Arrays | None,
    accepts_nonfinite: bool = False,
) -> StartingPoint:
    """Return what this launch begins with, when its end can be stored as far as can be known now.

    Raises:
        ModelMismatchError: what is stored is of another model than `initial`.
        NonFiniteModelError: it has NaN in it, and that is not accepted.
        UnsupportedArrayError: such a model cannot be stored.
        OSError: the store cannot be read, or has no room for the model.
    """
    newest = store.newest()
    if newest is not None and initial is not None:
        check_same_shapes(newest.path, newest.arrays, initial)
    last_gl_model = newest.version if newest else 0
    checkpoint = checkpoints.load(plan.run_id) if plan.is_resumable else None
    if newest is not None and plan.is_resumable and newest.run_id == plan.run_id and newest.origin is None:
        return StartingPoint(
            arrays=newest.arrays,
            done=newest.round if newest.outcome == RunOutcome.STOPPED else plan.num_rounds,
            gl_model=newest.version,
            last_gl_model=last_gl_model,
            checkpoint=checkpoint,
            saved=newest,
            first=newest.arrays,
        )
    arrays = checkpoint.arrays if checkpoint else newest.arrays if newest else initial
    if arrays is not None:
        check_storable(arrays)
        problem = None if accepts_nonfinite else nonfinite_in(arrays, arrays)
        if problem:
            source = "the checkpoint" if checkpoint else newest.path if newest else "the program's model"
            advice = "`fedops-mqtt model rollback` makes an earlier version the newest" if newest else "correct it"
            raise NonFiniteModelError(source, problem, advice)
    num_files = 2 if plan.is_resumable and checkpoint is None else 1  # checkpoint and version are there at a time
    store.check_writable(num_files * sum(array.nbytes for array in (arrays or {}).values()))
    return StartingPoint(
        arrays=arrays,
        done=checkpoint.round if checkpoint else 0,
        gl_model=store.next_version(),
        last_gl_model=last_gl_model,
        checkpoint=checkpoint,
        first=newest.arrays if newest else initial,
        previous=_left_by(newest, checkpoints),
    )


def _left_by(newest: StoredModel | None, checkpoints: CheckpointStore) -> Checkpoint | None:
    """Return what the run that made this version left, if it ended with this very model."""
    if newest is None or newest.run_id is None:
        return None
    left = checkpoints.load(newest.run_id)
    if left is None or not are_equal(left.arrays, newest.arrays):
        return None
    return replace(left, arrays=newest.arrays)  # one model in memory, not two
