"""An FL server program as a user writes it: one array, any of Flower's strategies by name, or a ServerApp.

Usage: python -m line_program [--strategy NAME | --server-app] [--numbers N] [--min-clients N]
"""

import argparse
import logging

import numpy as np
from device_plan import SERVER, own_plan
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import ndarrays_to_parameters
from flwr.server import strategy as classic
from flwr.serverapp import Grid, ServerApp, strategy

from fedops_mqtt.server import FLServer


def make_strategy(name: str, minimum: int) -> object:
    """Return `FedAvg`, or `classic.FedAvg` for the older family."""
    if name.startswith("classic."):
        return _classic(name.removeprefix("classic."), minimum)
    more = {"FedProx": {"proximal_mu": 0.1}, "Krum": {"num_malicious_nodes": 0}}.get(name, {})
    least = {f"min_{each}_nodes": minimum for each in ("train", "evaluate", "available")}
    return getattr(strategy, name)(**least, **more)


def _classic(name: str, minimum: int) -> object:
    initial = ndarrays_to_parameters([np.zeros(2, np.float32)])
    more = {"FedProx": {"proximal_mu": 0.1}, "FedAdam": {"initial_parameters": initial}}.get(name, {})
    least = {f"min_{each}_clients": minimum for each in ("fit", "evaluate", "available")}
    return getattr(classic, name)(on_fit_config_fn=lambda round_: {"server-round": round_}, **least, **more)


def make_server_app(array: np.ndarray, minimum: int) -> ServerApp:
    """Return what `flwr new` gives people, but for the model."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        result = make_strategy("FedAvg", minimum).start(
            grid=grid,
            initial_arrays=ArrayRecord([array]),
            num_rounds=int(context.run_config["num-server-rounds"]),
            evaluate_fn=lambda round_, arrays: MetricRecord(evaluate(round_, {"array": arrays.to_numpy_ndarrays()[0]})),
        )
        assert list(result.evaluate_metrics_serverapp)[-1] == int(context.run_config["num-server-rounds"])

    return app


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO)
    array = np.zeros(options.numbers, np.float32)
    if options.server_app:
        result = FLServer(server_app=make_server_app(array, options.min_clients)).start()
    else:
        chosen = make_strategy(options.strategy, options.min_clients)
        result = FLServer(None, [array], strategy=chosen, evaluate_fn=evaluate).start()
    print(result)


def evaluate(round_: int, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Evaluate the model, and go on to the next round when the test says so."""
    own_plan().wait_for_round(SERVER, round_ + 1)
    (array,) = arrays.values()
    return {"loss": 1 / (1 + round_), "accuracy": float(array.flat[0])}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy", default="FedAvg")
    parser.add_argument("--server-app", action="store_true")
    parser.add_argument("--numbers", type=int, default=2)
    parser.add_argument("--min-clients", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
