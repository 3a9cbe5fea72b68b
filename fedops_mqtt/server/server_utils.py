"""FedOps' `server_utils`, by its names: the server's status as FedOps keeps it, and stored global models."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedops_mqtt.server.model_arrays import arrays_of, check_same_shapes, load_into
from fedops_mqtt.server.store import ModelStore


@dataclass(slots=True)
class FLServerStatus:
    """FedOps server_utils.FLServerStatus: a view that FLServer keeps up to date (times in unix seconds)."""

    last_gl_model_v: int = 0
    """Version that this run began with; 0 where there was none."""
    gl_model_v: int = 0
    """Version that this run is saved as."""
    start_by_round: float = 0.0
    """When the round in hand began."""
    end_by_round: float = 0.0
    """Seconds that the last round took."""
    round: int = 0


def model_download_local(
    model_type: str, model: Any = None, *, store: str, task_id: str, model_name: str
) -> tuple[Any, str | None, int]:
    """Return `(model, name, version)` with the newest stored arrays in it; `(None, None, 0)` where there are none.

    `model_type` is FedOps' and not needed: what the model offers decides (see `load_into`).

    Raises:
        ModelMismatchError: the stored arrays are of another model.
    """
    newest = ModelStore(store, task_id=task_id, model_name=model_name).newest()
    if newest is None:
        return None, None, 0
    if model is not None:
        check_same_shapes(newest.path, newest.arrays, arrays_of(model))
    return load_into(model, newest.arrays), newest.model_name, newest.version


def load_initial_parameters_from_shape(json_path: str) -> list[NDArray[np.float32]]:
    """Return zeros in the shapes that a JSON file lists (FedOps server_utils, for Hugging Face adapters).

    Raises:
        FileNotFoundError: there is no such file.
    """
    shapes = json.loads(Path(json_path).read_text(encoding="utf-8"))
    return [np.zeros(shape, np.float32) for shape in shapes]
