"""An FL server for tests, as a process: two floats are averaged over the line, or by a classic gRPC server.

Usage: fl_server.py line RUN_ID SECRET_HEX|open ROUNDS [LAUNCH], or: fl_server.py grpc HOST:PORT ROUNDS.
Prints its address; a line that comes on stdin ends it before its time.
"""

import os
import sys

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg

from fedops_mqtt.line.server import LineServer
from fedops_mqtt.protocol import RunOutcome


def make_line_server(run_id: str, secret: str, launch: int) -> LineServer:
    is_open = secret == "open"
    return LineServer(
        run_id=run_id,
        launch=launch,
        run_secret=None if is_open else bytes.fromhex(secret),
        join="open" if is_open else "invited",
    )


def serve(server: LineServer, num_rounds: int) -> None:
    """Train to the end of the run."""
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    start = ArrayRecord({"w": Array(np.zeros(2, dtype=np.float32))})
    strategy.start(grid=server.grid, initial_arrays=start, num_rounds=num_rounds, timeout=600)
    server.close(RunOutcome.COMPLETED, "all rounds done", linger_s=300)


def serve_grpc(address: str, num_rounds: int) -> None:
    import flwr as fl
    from flwr.server.strategy import FedAvg

    print(address, flush=True)
    strategy = FedAvg(min_fit_clients=1, min_evaluate_clients=1, min_available_clients=1)
    fl.server.start_server(
        server_address=address, config=fl.server.ServerConfig(num_rounds=num_rounds), strategy=strategy
    )


if __name__ == "__main__":
    if sys.argv[1] == "line":
        with make_line_server(sys.argv[2], sys.argv[3], int((*sys.argv[5:], "1")[0])) as server:
            print(server.address, flush=True)
            serve(server, int(sys.argv[4]))
    else:
        serve_grpc(sys.argv[2], int(sys.argv[3]))
