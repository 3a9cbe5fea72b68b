"""The FL server: `python server_main.py`; settings from the manager outweigh config.yaml."""

from client_main import make_model
from data import load

from fedops_mqtt.server.app import FLServer

if __name__ == "__main__":
    x_val, y_val = load()
    FLServer("config.yaml", make_model(), "Linear", "Sklearn", x_val=x_val, y_val=y_val).start()
