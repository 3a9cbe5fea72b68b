"""The FL server: `python server_main.py`; settings from the manager outweigh config.yaml."""

from data import load
from model import make_model

from fedops_mqtt.server.app import FLServer

if __name__ == "__main__":
    x_val, y_val = load()
    FLServer("config.yaml", make_model(), "Net", "Tensorflow", x_val=x_val, y_val=y_val).start()
