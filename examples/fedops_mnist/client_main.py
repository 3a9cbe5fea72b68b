"""FedOps' client program, as it was but for two imports; FEDOPS_MQTT_BROKER says where the broker is."""

import data_preparation
import hydra
import models
from hydra.utils import instantiate
from omegaconf import DictConfig

from fedops_mqtt.client import client_utils
from fedops_mqtt.client.app import FLClientTask


@hydra.main(config_path="./conf", config_name="config", version_base=None)
def main(cfg: DictConfig) -> None:
    """Register the model and the data, and serve."""
    train_loader, val_loader, test_loader = data_preparation.load_partition(
        cfg.dataset.name, cfg.dataset.validation_split, cfg.batch_size, cfg.partition, cfg.num_clients
    )
    model = instantiate(cfg.model)
    model_name = type(model).__name__
    local_list = client_utils.local_model_directory(cfg.task_id)
    model = client_utils.download_local_model(cfg.model_type, cfg.task_id, local_list, model)
    registration = {
        "train_loader": train_loader,
        "val_loader": val_loader,
        "test_loader": test_loader,
        "model": model,
        "model_name": model_name,
        "train_torch": models.train_torch(),
        "test_torch": models.test_torch(),
    }
    FLClientTask(cfg, registration).start()


if __name__ == "__main__":
    main()
