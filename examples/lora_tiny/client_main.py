"""A device: `python client_main.py`, with FEDOPS_MQTT_BROKER and, to be one of several, FEDOPS_MQTT_PARTITION_ID."""

from fedops_mqtt.client.app import FLClientTask


def make_fl_task(context):
    """Return what this device trains; `context` says which part of the data is its own."""
    from model import finetune_llm, make_model, make_set, test_llm  # torch is for the training process only

    partition = int(context.node_config.get("partition-id", 0))
    return {
        "model": make_model(),
        "model_name": "Counter",
        "trainset": make_set(partition, 256),
        "testset": make_set(1000 + partition, 64),
        "finetune_llm": finetune_llm,
        "test_llm": test_llm,
    }


if __name__ == "__main__":
    FLClientTask("config.yaml", "client_main:make_fl_task").start()
