"""The FL server: `python server_main.py`; settings from the manager outweigh config.yaml."""

from model import make_model, make_set, test_llm

from fedops_mqtt.server.app import FLServer

if __name__ == "__main__":
    test = make_set(9999, 128)
    FLServer("config.yaml", make_model(), "Counter", "Huggingface", test, test_torch=test_llm).start()
