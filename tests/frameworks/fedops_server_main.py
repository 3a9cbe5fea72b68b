"""A user's program for the published FedOps server: a Hydra strategy, classic gRPC on port 8080, models to S3."""

import os
import sys

import boto3
from fedops.server.app import FLServer
from fedops_task import make_data, make_model, test_torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader


def make_bucket():
    s3 = boto3.client("s3", region_name="ap-northeast-2", aws_access_key_id="x", aws_secret_access_key="x")
    where = {"LocationConstraint": "ap-northeast-2"}
    s3.create_bucket(Bucket=os.environ["BUCKET_NAME"], CreateBucketConfiguration=where)


if __name__ == "__main__":
    count = int(sys.argv[1])
    strategy = {"_target_": "flwr.server.strategy.FedAvg", "fraction_fit": 1.0, "fraction_evaluate": 1.0}
    strategy |= {"min_fit_clients": count, "min_evaluate_clients": count, "min_available_clients": count}
    cfg = OmegaConf.create({"batch_size": 32, "num_epochs": 2, "num_rounds": 3, "server": {"strategy": strategy}})
    make_bucket()
    loader = DataLoader(make_data(99, 256), batch_size=32)
    FLServer(cfg, make_model(), "Linear", "Pytorch", gl_val_loader=loader, test_torch=test_torch).start()
