"""A server program for tests: `server_program.py STRATEGY`, everything else from the environment."""

import logging
import sys
import threading

from server_parts import evaluate

from fedops_mqtt.demo import digits
from fedops_mqtt.protocol import RunOutcome
from fedops_mqtt.server.app import FLServer

logging.basicConfig(level="INFO")
strategy = None
match sys.argv[1]:
    case "fedadam":
        from flwr.serverapp.strategy import FedAdam

        strategy = FedAdam(eta=0.05, min_train_nodes=2, min_evaluate_nodes=2)
    case "hang":

        def evaluate(round_: int, arrays: object) -> dict[str, float]:
            if round_ == 1:
                print("hanging", flush=True)
                while True:
                    threading.Event().wait(0.05)
            return {}


result = FLServer(None, digits.initial_arrays(), "digits", evaluate_fn=evaluate, strategy=strategy).start()
sys.exit(0 if result.outcome is RunOutcome.COMPLETED else 1)
