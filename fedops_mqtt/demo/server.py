"""The demo's FL server program, `python -m fedops_mqtt.demo.server`: FedAvg over the digits, evaluated on the server.

What the run is comes from whoever launches it, in `FEDOPS_MQTT_*` variables; started by hand it serves task `digits`.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence

from fedops_mqtt.aggregation.rounds import Evaluate
from fedops_mqtt.demo import digits
from fedops_mqtt.demo.client import DEFAULT_EPOCHS, DEFAULT_LEARNING_RATE
from fedops_mqtt.protocol import RunOutcome
from fedops_mqtt.runtime.logs import start_logging
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.server.app import FLServer
from fedops_mqtt.store.tensor_file import Arrays

_CFG = {"task_id": "digits", "num_rounds": 5}
MODEL_NAME = "digits"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one run; the exit status is 0 only when it completed."""
    options = _parse(arguments)
    settings = ServerSettings()
    start_logging(settings.log_level)
    logging.getLogger("flwr").handlers.clear()  # flwr installs one of its own, which would print everything twice
    server = FLServer(
        _CFG,
        digits.initial_arrays(),
        MODEL_NAME,
        evaluate_fn=make_evaluate(),
        train_config={"epochs": options.epochs, "learning-rate": options.learning_rate},
        settings=settings,
    )
    result = server.start()
    print(f"{result.outcome}: {result.reason}; round {result.round}, {dict(result.metrics)}, {result.model_path}")
    return 0 if result.outcome is RunOutcome.COMPLETED else 1


def make_evaluate() -> Evaluate:
    """Return the evaluation of the global model on the images that no client has."""
    test = digits.load_test()

    def evaluate(round_: int, arrays: Arrays) -> Mapping[str, float]:
        loss, accuracy = digits.evaluate(arrays, test)
        return {"loss": loss, "accuracy": accuracy}

    return evaluate


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fedops_mqtt.demo.server", description=__doc__)
    parser.add_argument("--epochs", type=int, default=DEFAULT_EPOCHS, help="local epochs a round")
    parser.add_argument("--learning-rate", type=float, default=DEFAULT_LEARNING_RATE, help="of the clients")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
