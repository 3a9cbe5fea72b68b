"""FedOps' server program, as it was but for one import."""

import data_preparation
import hydra
import models
from hydra.utils import instantiate
from omegaconf import DictConfig

from fedops_mqtt.server.app import FLServer


@hydra.main(config_path="./conf", config_name="config", version_base=None)
def main(cfg: DictConfig) -> None:
    """Aggregate what the devices train."""
    model = instantiate(cfg.model)
    FLServer(
        cfg=cfg,
        model=model,
        model_name=type(model).__name__,
        model_type=cfg.model_type,
        gl_val_loader=data_preparation.gl_model_torch_validation(cfg.batch_size),
        test_torch=models.test_torch(),
    ).start()


if __name__ == "__main__":
    main()
