"""What a launch of the server begins with: the program's model, the newest version, or its own run's checkpoint.

The later stands above the earlier: a checkpoint of this run, then the newest whole version, then the program's model.
"""

from dataclasses import dataclass, replace

from fedops_mqtt.aggregation.checkpoint import Checkpoint, CheckpointStore
from fedops_mqtt.aggregation.errors import NonFiniteModelError
from fedops_mqtt.aggregation.model_arrays import are_equal, check_same_shapes, nonfinite_in
from fedops_mqtt.aggregation.run_settings import RunPlan
from fedops_mqtt.protocol import RunOutcome
from fedops_mqtt.store.tensor_file import Arrays, check_storable
from fedops_mqtt.store.versions import ModelStore, StoredModel


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
    """This very run's model: the launch before died between saving it and saying so."""
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
    """Return what this launch begins with, when its end can be stored as far as anybody knows now.

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
