"""The app of a device that has moved: adds one, like the clients that have not."""

from flwr.client import NumPyClient
from flwr.clientapp import ClientApp


class AddsOne(NumPyClient):
    def fit(self, parameters, config):
        return [array + 1 for array in parameters], 10, {"accuracy": 0.75}

    def evaluate(self, parameters, config):
        return 0.25, 10, {"accuracy": 0.5}


app = ClientApp(client_fn=lambda context: AddsOne().to_client())
