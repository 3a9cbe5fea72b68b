"""How a run ended, as a small file beside the run's checkpoint: a manager on another host reads it there.

The content is the FL server's final status; it is written before it is published. The task's next run removes it.
"""

from pathlib import Path

from fedops_mqtt.protocol import check_run_id, check_task_id
from fedops_mqtt.store.folder import Folder, open_folder

RUN_FOLDER = ".checkpoints"
"""In a task's folder: what belongs to a run, not to the task's models."""

FINAL_STATUS_SUFFIX = ".final-status.json"


def write_final_status(url: str, content: bytes, *, task_id: str, run_id: str) -> None:
    """Write it in the place of that of an earlier launch.

    Raises:
        StoreUrlError: the URL names no store.
        OSError: the store cannot be written to.
    """

    def write(path: Path) -> None:
        path.write_bytes(content)

    _folder(url, task_id).replace(_name(run_id), write)


def read_final_status(url: str, *, task_id: str, run_id: str, max_bytes: int) -> bytes:
    """Return it, or its first `max_bytes`.

    Raises:
        FileNotFoundError: there is none.
        StoreUrlError: the URL names no store.
        OSError: the store cannot be read.
    """
    with _folder(url, task_id).reading(_name(run_id)) as path, path.open("rb") as file:
        return file.read(max_bytes)


def _folder(url: str, task_id: str) -> Folder:
    return open_folder(f"{url.rstrip('/')}/{check_task_id(task_id)}/{RUN_FOLDER}")


def _name(run_id: str) -> str:
    return check_run_id(run_id) + FINAL_STATUS_SUFFIX
