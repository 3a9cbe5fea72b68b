"""FedOps' `server_utils`, by its names: the server's status as FedOps keeps it, and stored global models."""

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedops_mqtt.model_types.local_models import load_local_model
from fedops_mqtt.protocol import check_task_id
from fedops_mqtt.runtime.extras import how_to_install
from fedops_mqtt.runtime.settings import FedOpsSettings
from fedops_mqtt.store.folder import Folder, LocalFolder
from fedops_mqtt.store.remote_folder import RemoteFolder

_log = logging.getLogger(__name__)

_GLOBAL_MODEL = re.compile(r"(?P<name>.+)_gl_model_V(?P<version>\d+)\.(?:safetensors|pth)")


@dataclass(slots=True)
class FLServerStatus:
    """FedOps server_utils.FLServerStatus: a view that FLServer keeps up to date (times in unix seconds)."""

    last_gl_model_v: int = 0
    """Version that this run began with; 0 where there was none."""
    gl_model_v: int = 0
    """Version that this run is saved as."""
    start_by_round: float = 0.0
    """When the current round began."""
    end_by_round: float = 0.0
    """Seconds that the last round took."""
    round: int = 0


def aws_session(region_name: str = "ap-northeast-2") -> Any:
    """Return a boto3 session with FedOps' variables ACCESS_KEY_ID and ACCESS_SECRET_KEY (FedOps server_utils).

    Raises:
        ModuleNotFoundError: boto3 is missing; the message has the command that installs it.
    """
    try:
        import boto3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(how_to_install(error), name=error.name) from error

    key, secret = _credentials()
    return boto3.session.Session(aws_access_key_id=key, aws_secret_access_key=secret, region_name=region_name)


def upload_model_to_bucket(task_id: str, global_model_name: str) -> None:
    """Upload `./{global_model_name}` to the bucket BUCKET_NAME as `{task_id}/{global_model_name}`.

    FLServer does not need it: with `store` at `s3://bucket` its models are there. This is for files of your own.
    """
    folder = RemoteFolder(_bucket(task_id), options=_s3_options())
    folder.replace(global_model_name, lambda path: shutil.copyfile(global_model_name, path))


def model_download_s3(task_id: str, model_type: str, model: Any = None) -> tuple[Any, str | None, int]:
    """Return `(model, name, version)` with the newest global model of the bucket BUCKET_NAME in it.

    `(model, None, 0)` where there is none yet; `(None, None, 0)`, logged, where the bucket cannot be read (FedOps
    server_utils).

    Raises:
        ValueError: the newest is of another model.
    """
    folder = RemoteFolder(_bucket(task_id), options=_s3_options())
    try:
        return _newest_in(folder, model_type, model) or (model, None, 0)
    except OSError as error:
        _log.error("no global model could be read", extra={"bucket": _bucket(task_id), "problem": str(error)})
        return None, None, 0


def model_download_local(model_type: str, model: Any = None) -> tuple[Any, str | None, int]:
    """Return `(model, name, version)` with the newest global model of this folder in it; `(None, None, 0)` for none.

    Raises:
        ValueError: the newest is of another model.
    """
    return _newest_in(LocalFolder(Path()), model_type, model) or (None, None, 0)


def _newest_in(folder: Folder, model_type: str, model: Any) -> tuple[Any, str, int] | None:
    found = [match for name in folder.names() if (match := _GLOBAL_MODEL.fullmatch(name))]
    if not found:
        return None
    newest = max(found, key=lambda match: int(match["version"]))
    with folder.reading(newest[0]) as path:
        return load_local_model(model_type, path, model), newest["name"], int(newest["version"])


def _bucket(task_id: str) -> str:
    return f"s3://{FedOpsSettings().bucket_name}/{check_task_id(task_id)}"


def _s3_options() -> dict[str, Any]:
    key, secret = _credentials()
    return {"key": key, "secret": secret} if key else {}


def _credentials() -> tuple[str | None, str | None]:
    settings = FedOpsSettings()
    key, secret = settings.access_key_id, settings.access_secret_key
    return (key.get_secret_value() if key else None), (secret.get_secret_value() if secret else None)


def load_initial_parameters_from_shape(json_path: str) -> list[NDArray[np.float32]]:
    """Return zeros in the shapes that a JSON file lists (FedOps server_utils, for Hugging Face adapters).

    Raises:
        FileNotFoundError: there is no such file.
    """
    shapes = json.loads(Path(json_path).read_text(encoding="utf-8"))
    return [np.zeros(shape, np.float32) for shape in shapes]
