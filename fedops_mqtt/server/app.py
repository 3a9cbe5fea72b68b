"""FedOps' `FLServer`, over MQTT and the line: its arguments, made into what the engine (`aggregation`) takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.serverapp import ServerApp

from fedops_mqtt.aggregation.errors import ServerConfigError
from fedops_mqtt.aggregation.rounds import Evaluate
from fedops_mqtt.aggregation.run_settings import fit_config, make_plan
from fedops_mqtt.aggregation.server_run import RunResult, ServerRun
from fedops_mqtt.aggregation.strategy import Config, make_fedavg
from fedops_mqtt.aggregation.strategy_state import AnyStrategy
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.runtime.task_config import read_configuration
from fedops_mqtt.server.server_api import ServerAPI, ServerBackend, publishing_through
from fedops_mqtt.server.server_utils import FLServerStatus
from fedops_mqtt.server.strategy_config import strategy_of
from fedops_mqtt.server.typed_model import TestTorch, loader_of, make_evaluate, shared_arrays


class FLServer:
    """FedOps server.app.FLServer, over MQTT and the line: `FLServer(cfg, model, ...).start()` is a server program.

    Args:
        cfg: mapping, YAML file's path, OmegaConf node or object with `task_id`, `num_rounds`, `min_clients`,
            `batch_size`, `num_epochs`, and `server.strategy` as Hydra describes one (`_target_`).
        model: initial global model: list or dict of arrays, ArrayRecord, or an object that `arrays_of` understands.
        model_name: names the file; a model of another shape needs another name.
        model_type: FedOps' (`Pytorch`, `Tensorflow`, `Huggingface`), `Sklearn` or `Numpy`: what of it is shared.
        gl_val_loader, x_val, y_val, test_torch: FedOps' evaluation data and function, see `make_evaluate`.
        strategy: of `flwr.serverapp.strategy` or `flwr.server.strategy`; default: that of cfg, else FedAvg over all.
        server_app: a Flower ServerApp in place of a strategy.
        evaluate_fn: `(round, arrays by name) -> metrics`, in place of FedOps' evaluation.
        app_config: configuration of the ServerApp's project; default: that of the program's own `pyproject.toml`.
        train_config: sent to the clients of a message strategy; default FedOps' fit_config out of cfg.
        settings: default: from the environment.
    """

    def __init__(
        self,
        cfg: Any = None,
        model: Any = None,
        model_name: str = "model",
        model_type: str = "Numpy",
        gl_val_loader: Any = None,
        x_val: Any = None,
        y_val: Any = None,
        test_torch: TestTorch | None = None,
        *,
        strategy: AnyStrategy | None = None,
        server_app: ServerApp | None = None,
        evaluate_fn: Evaluate | None = None,
        train_config: Config | None = None,
        app_config: Config | None = None,
        settings: ServerSettings | None = None,
    ) -> None:
        if strategy is not None and server_app is not None:
            raise ServerConfigError("give either a strategy or a server_app: a ServerApp brings its own")
        cfg = self.cfg = read_configuration(cfg)
        self.model_name = model_name
        self.model_type = model_type
        self.server = FLServerStatus()
        self.settings = settings or ServerSettings()
        self.plan = make_plan(self.settings, cfg)
        initial = shared_arrays(model, model_type, cfg=cfg, x_val=x_val, y_val=y_val)
        if strategy is None and server_app is None:
            strategy = strategy_of(
                cfg, initial=initial, fit_config=self.fit_config, evaluate_config=self.evaluate_config
            ) or make_fedavg(self.plan.min_clients or 2)
        self.strategy = strategy
        evaluate = evaluate_fn or make_evaluate(
            model,
            cfg=cfg,
            test_torch=test_torch,
            load=loader_of(model_type),
            gl_val_loader=gl_val_loader,
            x_val=x_val,
            y_val=y_val,
        )
        self._run = ServerRun(
            plan=self.plan,
            settings=self.settings,
            strategy=strategy,
            server_app=server_app,
            initial=initial,
            evaluate=evaluate,
            train_config=self.fit_config(1) if train_config is None else train_config,
            app_config=app_config,
            model_name=model_name,
            status=self.server,
            attach=self._attach,
        )

    @property
    def address(self) -> str | None:
        """`host:port` of the line, once it listens."""
        return self._run.address

    @property
    def task_id(self) -> str:
        """The task that this server trains for."""
        return self.plan.task_id

    def fit_config(self, rnd: int) -> dict[str, bool | int | float | str]:
        """Return what clients are sent with each round's training; a classic strategy asks for it every round."""
        return fit_config(self.cfg, self.plan.num_rounds)

    def evaluate_config(self, rnd: int) -> dict[str, bool | int | float | str]:
        """Return what clients are sent with each round's evaluation."""
        return {name: value for name, value in self.fit_config(rnd).items() if name == "batch_size"}

    def start(self) -> RunResult:
        """Do the run, to whatever end, and return how it ended. Call it once, best in the main thread.

        SIGTERM and SIGINT (in the main thread) and `stop` end the run as stopped, with its last whole round saved.

        Raises:
            BrokerUrlError: the broker's URL cannot be used; a broker that is not there is waited for in the background.
        """
        return self._run.run()

    def stop(self, reason: str = "asked by its program") -> None:
        """End the run as stopped; `start` returns soon. May be called from any thread."""
        self._run.stop(reason)

    @contextmanager
    def _attach(self, backend: ServerBackend) -> Iterator[None]:
        """While the run publishes, FedOps' `ServerAPI` of this process publishes through it."""
        with publishing_through(backend):
            self.api = ServerAPI(self.task_id, backend)
            yield
