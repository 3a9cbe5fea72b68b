"""The FL server: `python server_main.py`; settings from the manager outweigh config.yaml."""

from data import load
from model import Images, make_model, test_numpy

from fedops_mqtt.server.app import FLServer

if __name__ == "__main__":
    FLServer("config.yaml", make_model(), "Softmax", "Numpy", Images(*load()), test_torch=test_numpy).start()
