"""The FL server: `python server_main.py`; settings from the manager outweigh config.yaml."""

from data import load
from model import make_loader, make_model, test_torch

from fedops_mqtt.server.app import FLServer

if __name__ == "__main__":
    FLServer("config.yaml", make_model(), "Net", "Pytorch", make_loader(*load(), 32), test_torch=test_torch).start()
