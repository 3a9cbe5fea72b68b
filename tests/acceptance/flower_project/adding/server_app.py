"""ServerApps: every strategy of a family in one run. What came of each goes to a file, for the test.

Usage: python -m adding.server_app app|classic [NAME ...]
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig
from flwr.server import strategy as older
from flwr.server.compat import start_grid
from flwr.serverapp import Grid, ServerApp, strategy

from fedops_mqtt.server import FLServer

START = np.zeros(4, dtype=np.float32)
ROUNDS = 2
CLIENTS = 2


def private(**least: int) -> strategy.Strategy:
    """Return FedAvg behind Flower's differential privacy, whose mod runs on the clients."""
    return strategy.DifferentialPrivacyClientSideFixedClipping(
        strategy.FedAvg(**least), noise_multiplier=0.001, clipping_norm=100.0, num_sampled_clients=CLIENTS
    )


MAKE = {
    "FedAvg": strategy.FedAvg,
    "FedProx": lambda **least: strategy.FedProx(proximal_mu=0.1, **least),
    "FedAdam": strategy.FedAdam,
    "FedYogi": strategy.FedYogi,
    "FedMedian": strategy.FedMedian,
    "Krum": strategy.Krum,
    "private": private,
}
MAKE_CLASSIC = {
    "FedAvg": older.FedAvg,
    "FedProx": lambda **most: older.FedProx(proximal_mu=0.1, **most),
    "FedAdam": older.FedAdam,
    "FedTrimmedAvg": older.FedTrimmedAvg,
}


app = ServerApp()
classic = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    for name in sys.argv[2:] or MAKE:
        made = MAKE[name](min_train_nodes=CLIENTS, min_evaluate_nodes=CLIENTS, min_available_nodes=CLIENTS)
        result = made.start(
            grid=grid,
            initial_arrays=ArrayRecord([START]),
            num_rounds=ROUNDS,
            evaluate_fn=lambda round_, arrays: MetricRecord({"first": float(arrays.to_numpy_ndarrays()[0][0])}),
        )
        tell(
            name,
            first=float(result.arrays.to_numpy_ndarrays()[0][0]),
            by_server=result.evaluate_metrics_serverapp[ROUNDS]["first"],
            by_clients=result.evaluate_metrics_clientapp[ROUNDS]["eval_first"],
            trainings=result.train_metrics_clientapp[ROUNDS]["trainings"],
            local_epochs=context.run_config["local-epochs"],
            partitions=result.evaluate_metrics_clientapp[ROUNDS]["partition"],
        )
        context.state["arrays"] = result.arrays


@classic.main()
def main_of_classic(grid: Grid, context: Context) -> None:
    for name, make in MAKE_CLASSIC.items():
        history = start_grid(
            grid=grid,
            config=ServerConfig(num_rounds=ROUNDS),
            strategy=make(
                initial_parameters=ndarrays_to_parameters([START]),
                evaluate_fn=lambda round_, arrays, config: (float(arrays[0][0]), {}),
                evaluate_metrics_aggregation_fn=lambda found: {
                    "upstairs": sum(each["is_upstairs"] for _, each in found)
                },
            ),
        )
        tell(
            name,
            first=history.losses_centralized[-1][1],
            by_clients=history.losses_distributed[-1][1],
            upstairs=history.metrics_distributed["upstairs"][-1][1],
        )


def tell(name: str, **found: float) -> None:
    path = Path(os.environ["FEDOPS_TEST_FOLDER"]) / "strategies.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, name: found}))


if __name__ == "__main__":
    FLServer(server_app={"app": app, "classic": classic}[sys.argv[1]]).start()
