"""A FedOps FL server re-enacted: says that it is ready, serves classic gRPC, says each round and how it ended.

Its managers' address is fixed in FedOps, so it is reached as FedOps' users reach another one: through `http_proxy`.
"""

import argparse
import json
import os
import socket
import urllib.request

import flwr as fl
import numpy as np

MANAGER = "http://10.102.217.157:8000"
PERFORMANCE = "http://10.100.33.100:8001"


def put(url, fields=None):
    request = urllib.request.Request(url, data=json.dumps(fields).encode() if fields else b"", method="PUT")
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", required=True)
    parser.add_argument("--port", required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--fails", action="store_true")
    arguments = parser.parse_args()
    task, count = arguments.task, arguments.clients

    def evaluate(round_, arrays, config):
        if round_ == 0:
            return None
        if arguments.fails:
            raise RuntimeError("no such disk")
        numbers = {"round": round_, "gl_loss": 1.0 / round_, "gl_accuracy": 0.5, "run_time_by_round": 0.25}
        put(f"{PERFORMANCE}/server_perf/gl_model_evaluation/{task}", {"fl_task_id": task, "gl_model_v": 4} | numbers)
        return 1.0 / round_, {"accuracy": 0.5}

    put(f"{MANAGER}/FLSe/FLSeUpdate/{task}", {"FLSeReady": True, "GL_Model_V": 4, "S3_bucket": "fl-gl-model"})
    try:
        fl.server.start_server(
            server_address=f"127.0.0.1:{arguments.port}",
            config=fl.server.ServerConfig(num_rounds=2),
            strategy=fl.server.strategy.FedAvg(
                min_fit_clients=count,
                min_evaluate_clients=count,
                min_available_clients=count,
                initial_parameters=fl.common.ndarrays_to_parameters([np.zeros((2, 3), np.float32)]),
                evaluate_fn=evaluate,
            ),
        )
        times = {"fl_task_id": task, "server_operation_time": 1.5, "gl_model_v": 4}
        put(f"{PERFORMANCE}/server_perf/server_time_result/{task}", times)
    except RuntimeError:
        put(f"{MANAGER}/FLSe/FLSeUpdate/{task}", {"FLSeReady": False})
    finally:
        put(f"{MANAGER}/FLSe/FLRoundFin/{task}?FLSeReady=false")


if __name__ == "__main__":
    socket.setdefaulttimeout(20)
    assert "http_proxy" in os.environ
    main()
