"""The programs of `line.py` that are no commands yet: python -m line_roles {ours-server,grpc-server,grpc-client} ..."""

import logging
import os
import sys

import line_app

MAX_GRPC_BYTES = 1024**3
"""Classic gRPC's own limit is 512 MiB; with less than the model it fails."""


def ours_server() -> None:
    """Serve the line as a user's program does, checkpoints, store and bus included."""
    from fedops_mqtt.server import FLServer

    FLServer(
        {"task_id": "bench", "num_rounds": line_app.NUM_ROUNDS, "min_clients": int(os.environ[line_app.QUORUM])},
        line_app.initial_arrays(),
        "bench",
        strategy=line_app.make_strategy(),
        evaluate_fn=line_app.Gate(),
    ).start()


def grpc_server(address: str) -> None:
    """Serve classic gRPC."""
    from flwr.server import ServerConfig, start_server

    start_server(
        server_address=address,
        config=ServerConfig(num_rounds=line_app.NUM_ROUNDS),
        strategy=line_app.whole_strategy(),
        grpc_max_message_length=MAX_GRPC_BYTES,
    )


def grpc_client(address: str, partition: str) -> None:
    """Train over classic gRPC."""
    from flwr.client import start_client

    client = line_app.Digits(int(partition)).to_client()
    start_client(server_address=address, client=client, grpc_max_message_length=MAX_GRPC_BYTES)


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)
    role, *arguments = sys.argv[1:]
    {"ours-server": ours_server, "grpc-server": grpc_server, "grpc-client": grpc_client}[role](*arguments)
