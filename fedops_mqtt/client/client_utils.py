"""FedOps' `client_utils`: views of a client, who this device is, its local models; a framework is imported when used.

`FLClientStatus` is a view of our status under FedOps' names: made when asked for, kept nowhere.
"""

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedops_mqtt.client.client_api import ClientManagerAPI
from fedops_mqtt.core.client import Client
from fedops_mqtt.device.identity import NoMacAddressError, get_hostname, get_mac_address
from fedops_mqtt.protocol import AnyMacAddress, ClientCondition
from fedops_mqtt.runtime.machine import split_address
from fedops_mqtt.runtime.task_config import entry

logger = logging.getLogger(__name__)

__all__ = [
    "FLClientStatus",
    "ManagerData",
    "NoMacAddressError",
    "download_local_model",
    "gen_parameter_shape",
    "get_hostname",
    "get_mac_address",
    "get_parameters_for_llm",
    "load_model",
    "local_model_directory",
    "local_model_stem",
    "notify_fail",
    "notify_fin",
    "set_parameters_for_llm",
    "view_of",
]

_LOCAL_MODELS = Path("local_model")
"""Below the folder that the client was started in (FedOps client_utils.local_model_directory)."""
_LOCAL_MODEL = re.compile(r"(?P<name>.+)_local_model_V(?P<version>\d+)(?:\.(?P<ending>safetensors|pth))?")
_MAX_PORT = 65535


class FLClientStatus(BaseModel):
    """A client as FedOps' `GET /online` shows it (FedOps client_utils.FLClientStatus)."""

    model_config = ConfigDict(frozen=True)

    task_id: str = ""
    client_num: int = 0
    client_mac: str = ""
    client_name: str = ""
    client_online: bool = True
    client_start: bool = False
    client_fail: bool = False
    server_IP: str | None = None
    gl_model: int = 0

    def with_first_names(self) -> dict[str, str | int | bool | None]:
        """Return the same facts under today's names and under those of FedOps' first client managers.

        Those count the model that a training will make: the latest and one.
        """
        return {
            "FL_task_id": self.task_id,
            "FL_client_num": self.client_num,
            "FL_client_mac": self.client_mac,
            "FL_client_online": self.client_online,
            "FL_client_start": self.client_start,
            "FL_client_fail": self.client_fail,
            "FL_server_IP": self.server_IP,
            "FL_next_gl_model": self.gl_model + 1,
            **self.model_dump(),
        }


def _check_port(address: str) -> str:
    if ":" in address and not 0 < split_address(address)[1] <= _MAX_PORT:
        raise ValueError(f"port must be 1 to {_MAX_PORT}")
    return address


class ManagerData(BaseModel):
    """What `POST /start` takes: where to train, and whom the sender means; further fields are ignored.

    Either may be missing: FedOps' own client takes no body at all, and asks its server manager where to train.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    server_ip: (
        Annotated[str, Field(max_length=300, pattern=r"^(\S+:\d{1,5}|[^\s:]+)$"), AfterValidator(_check_port)] | None
    ) = None
    """`host:port`, or a host alone from FedOps' client managers, which leave the port to `getPort`."""
    client_mac: AnyMacAddress | None = None


def view_of(client: Client) -> FLClientStatus:
    """Return the FedOps view of a client."""
    return FLClientStatus(
        task_id=client.identity.task_id,
        client_mac=client.identity.client_mac,
        client_name=client.identity.client_name,
        client_online=client.condition is not ClientCondition.CLIENT_OUT,
        client_start=client.run is not None,
        client_fail=client.condition is ClientCondition.TRAIN_FAILED,
        server_IP=client.server_ip,
        gl_model=client.facts.gl_model,
    )


def local_model_directory(task_id: str) -> list[str]:
    """Make `./local_model/{task_id}` where it is not there; return the names of what is in it."""
    folder = _LOCAL_MODELS / task_id
    folder.mkdir(parents=True, exist_ok=True)
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def local_model_stem(task_id: str, model_name: str, gl_model: int) -> Path:
    """Return where the local model of a version is kept, without the ending that its kind has."""
    return _LOCAL_MODELS / task_id / f"{model_name}_local_model_V{gl_model}"


def download_local_model(model_type: str, task_id: str, listdir: Iterable[str], model: Any = None) -> Any:
    """Return `model` with the newest local model in it; as it was where there is none (FedOps client_utils).

    Nothing is unpickled: `.safetensors` is ours, `.pth` is loaded with `weights_only`.

    Raises:
        ValueError: the newest is of another model.
    """
    found = [match for name in listdir if (match := _LOCAL_MODEL.fullmatch(name))]
    if not found:
        logger.info("no local model yet", extra={"task_id": task_id})
        return model
    newest = max(found, key=lambda match: int(match["version"]))
    from fedops_mqtt.model_types.local_models import load_local_model

    return load_local_model(model_type, _LOCAL_MODELS / task_id / newest[0], model)


async def notify_fin() -> bool:
    """Report that the current training is finished; returns whether one is still going on, which is False."""
    ClientManagerAPI().get_train_fin()
    return False


async def notify_fail() -> bool:
    """Report that the current training has failed; returns False."""
    ClientManagerAPI().get_train_fail()
    return False


def set_parameters_for_llm(model: Any, parameters: list[Any]) -> None:
    """Put arrays into a PEFT model's adapter, in its own order."""
    from fedops_mqtt.model_types import peft_model

    peft_model.load_arrays(model, dict(zip(peft_model.shared_arrays(model), parameters, strict=True)))


def get_parameters_for_llm(model: Any) -> list[Any]:
    """Return the arrays of a PEFT model's adapter."""
    from fedops_mqtt.model_types import peft_model

    return list(peft_model.shared_arrays(model).values())


def load_model(model_name: str, quantization: int, gradient_checkpointing: bool, peft_config: Any) -> Any:
    """Return a causal language model with a PEFT adapter, in 4 or 8 bits where `quantization` is 4 or 8."""
    from fedops_mqtt.model_types import peft_model

    return peft_model.load_model(model_name, quantization, gradient_checkpointing, peft_config)


def gen_parameter_shape(cfg: Any) -> None:
    """Write the shapes of a LoRA adapter to `cfg.save_filename` (`parameter_shapes.json`), for the FL server."""
    from fedops_mqtt.model_types import peft_model

    path = Path(entry(cfg, "save_filename", "parameter_shapes.json"))
    shapes = peft_model.parameter_shapes(
        entry(cfg, "model.name"),
        r=int(entry(cfg, "finetune.lora_r")),
        lora_alpha=int(entry(cfg, "finetune.lora_alpha")),
        lora_dropout=float(entry(cfg, "finetune.lora_dropout", 0.0)),
    )
    path.write_text(json.dumps(shapes, indent=2), encoding="utf-8")
    logger.info("parameter shapes written", extra={"path": str(path.absolute())})
