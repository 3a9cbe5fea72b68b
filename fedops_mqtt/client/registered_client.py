"""FedOps' `FLClient`: a registered model as a Flower NumPyClient, whichever framework it is of.

Each round's numbers are published as FedOps does (`put_train_result`, `put_test_result`), and the model is kept.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flwr.client import NumPyClient
from numpy.typing import NDArray

from fedops_mqtt.client.client_api import ClientServerAPI, NoActiveBackendError
from fedops_mqtt.client.client_utils import local_model_stem
from fedops_mqtt.model_types import Adapter, TrainPlan, make_adapter
from fedops_mqtt.runtime.task_config import entry
from fedops_mqtt.training.app_loading import Register
from fedops_mqtt.training.pipe import Job

logger = logging.getLogger(__name__)

Numbers = dict[str, bool | int | float | str | bytes]

_DEFAULT_BATCH = 32
_HP = "hp_"
_HP_NUM_EPOCHS = "local_epochs"


class RegisteredClient(NumPyClient):
    """A registered model as a Flower client.

    Args:
        adapter: of its model type: trains, evaluates, shares.
        cfg: the task's configuration, in any of the forms that `task_config` reads.
        wandb_run: where each round's numbers are shown; None: nowhere.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        cfg: Any,
        fl_task_id: str,
        client_mac: str,
        client_name: str,
        gl_model: int,
        fl_round: int = 1,
        model_name: str = "model",
        wandb_name: str = "",
        wandb_run: Any = None,
    ) -> None:
        self.adapter = adapter
        self.cfg = cfg
        self.fl_task_id, self.client_mac, self.client_name = fl_task_id, client_mac, client_name
        self.fl_round, self.gl_model = fl_round, gl_model
        self.model_name = model_name
        self.wandb_name, self.wandb_run = wandb_name, wandb_run

    @property
    def model(self) -> Any:
        """The model as it is now."""
        return getattr(self.adapter, "model", None)

    def get_parameters(self, config: Mapping[str, Any] | None = None) -> list[NDArray[Any]]:
        """Return what the model shares."""
        return list(self.adapter.arrays().values())

    def set_parameters(self, parameters: list[NDArray[Any]]) -> None:
        """Take over what the server sent."""
        self.adapter.load(parameters)

    def fit(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> tuple[list[NDArray[Any]], int, Numbers]:
        """Train one round on this device's data."""
        began = time.monotonic()
        self.set_parameters(parameters)
        trained = self.adapter.train(self._plan(config))
        self._keep_copy()
        seconds = time.monotonic() - began
        numbers = {**trained.metrics, "train_time": seconds}
        self._show(config, numbers)
        self._publish(ClientServerAPI.put_train_result, config, numbers)
        return self.get_parameters(), trained.num_examples, dict(trained.metrics)

    def evaluate(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> tuple[float, int, Numbers]:
        """Evaluate the global model on this device's test data."""
        self.set_parameters(parameters)
        found = self.adapter.test(self._plan(config).batch_size)
        numbers = {"test_loss": found.loss, "test_accuracy": found.accuracy}
        self._show(config, {**numbers, **found.metrics})
        self._publish(ClientServerAPI.put_test_result, config, numbers)
        self.fl_round += 1
        return found.loss, found.num_examples, {"accuracy": found.accuracy, **found.metrics}

    def _keep_copy(self) -> None:
        try:
            self.adapter.save(local_model_stem(self.fl_task_id, self.model_name, self.gl_model))
        except Exception as error:  # each framework has errors of its own for a disk that is full or read-only
            logger.warning("the local copy of the model is not kept, its update is: %s", error)

    def _plan(self, config: Mapping[str, Any]) -> TrainPlan:
        hp = {name.removeprefix(_HP): float(value) for name, value in config.items() if name.startswith(_HP)}
        num_epochs = hp.get(_HP_NUM_EPOCHS, config.get("local_epochs", entry(self.cfg, "num_epochs", 1)))
        batch_size = hp.get("batch_size", config.get("batch_size", entry(self.cfg, "batch_size", _DEFAULT_BATCH)))
        return TrainPlan(batch_size=int(batch_size), num_epochs=int(num_epochs), hp=hp)

    def _round(self, config: Mapping[str, Any]) -> int:
        return int(config.get("server-round", self.fl_round))

    def _show(self, config: Mapping[str, Any], values: Mapping[str, float]) -> None:
        if self.wandb_run is not None:
            round_ = self._round(config)
            self.wandb_run.log({**values, "round": round_}, step=round_)

    def _publish(self, put: Callable[..., None], config: Mapping[str, Any], values: Mapping[str, float]) -> None:
        result: dict[str, Any] = {
            "fl_task_id": self.fl_task_id,
            "client_mac": self.client_mac,
            "client_name": self.client_name,
            "round": self._round(config),
            "gl_model_v": self.gl_model,
            **values,
            "wandb_name": self.wandb_name,
        }
        if config.get("cluster_id") is not None:
            result["cluster_id"] = int(config["cluster_id"])
        try:
            put(ClientServerAPI(self.fl_task_id), result)
        except NoActiveBackendError:
            logger.debug("no client in this process, a result is not published")


class FLClient(RegisteredClient):
    """FedOps client_fl.FLClient, with its arguments.

    `registration` has entries beside them, such as those of the model types that FedOps has not.

    Raises:
        RegistrationError: something that the model type needs is missing.
    """

    def __init__(
        self,
        model: Any,
        validation_split: float | None,
        fl_task_id: str,
        client_mac: str,
        client_name: str,
        fl_round: int,
        gl_model: int,
        wandb_use: bool,
        wandb_name: str,
        wandb_run: Any = None,
        model_name: str | None = None,
        model_type: str | None = None,
        x_train: Any = None,
        y_train: Any = None,
        x_test: Any = None,
        y_test: Any = None,
        train_loader: Any = None,
        val_loader: Any = None,
        test_loader: Any = None,
        cfg: Any = None,
        train_torch: Callable[..., Any] | None = None,
        test_torch: Callable[..., Any] | None = None,
        finetune_llm: Callable[..., Any] | None = None,
        trainset: Any = None,
        tokenizer: Any = None,
        data_collator: Any = None,
        formatting_prompts_func: Callable[..., Any] | None = None,
        num_rounds: int | None = None,
        *,
        registration: Mapping[str, Any] | None = None,
    ) -> None:
        given = {
            "model": model,
            "validation_split": validation_split,
            "x_train": x_train,
            "y_train": y_train,
            "x_test": x_test,
            "y_test": y_test,
            "train_loader": train_loader,
            "val_loader": val_loader,
            "test_loader": test_loader,
            "train_torch": train_torch,
            "test_torch": test_torch,
            "finetune_llm": finetune_llm,
            "trainset": trainset,
            "tokenizer": tokenizer,
            "data_collator": data_collator,
            "formatting_prompts_func": formatting_prompts_func,
        }
        self.model_type = model_type or "Pytorch"
        self.num_rounds = num_rounds
        given = {name: value for name, value in given.items() if value is not None}
        super().__init__(
            make_adapter(self.model_type, {**(registration or {}), **given}, cfg),
            cfg=cfg,
            fl_task_id=fl_task_id,
            client_mac=client_mac,
            client_name=client_name,
            gl_model=gl_model,
            fl_round=fl_round,
            model_name=model_name or "model",
            wandb_name=wandb_name,
            wandb_run=wandb_run if wandb_use else None,
        )


def flower_client_start(FL_server_IP: str, client: NumPyClient) -> Callable[[], None]:
    """Return what trains a client with a classic Flower server when it is called (FedOps client_fl); blocks until then.

    `FLClientTask` does this by itself, over the line too; this is for programs that do without it.
    """
    from flwr.client import start_client

    return partial(start_client, server_address=FL_server_IP, client=client.to_client())


def make_register(job: Job, cfg: Any) -> Register:
    """Return what makes a client of a registration, in the training that a job asks for."""

    def register(registration: Mapping[str, Any]) -> NumPyClient:
        model_type = registration.get("model_type") or entry(cfg, "model_type", "Pytorch")
        return RegisteredClient(
            make_adapter(model_type, registration, cfg),
            cfg=cfg,
            fl_task_id=job.identity.task_id,
            client_mac=job.identity.client_mac,
            client_name=job.identity.client_name,
            gl_model=job.start.gl_model,
            model_name=registration.get("model_name") or "model",
            wandb_name=job.wandb.name if job.wandb else "",
        )

    return register
