"""What is sent to a cluster, and what deploy/kubernetes holds, against the published schemas of Kubernetes.

`kubectl` is not asked: that every listed file is there, and every object valid in its namespace, is checked here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fedops_mqtt.manager.kubernetes_manifests import (
    MAX_SECRET_BYTES,
    job_manifest,
    job_name,
    secret_manifests,
)
from fedops_mqtt.manager.remote_launcher import RemoteLaunch
from fedops_mqtt.manager.remote_order import make_order
from fedops_mqtt.manager.tasks import KubernetesTask, TaskConfig, Tasks

DEPLOY = Path(__file__).parents[3] / "deploy/kubernetes"
VERSIONS = ("1.28", "1.32", "1.37")


def launch_of(task: TaskConfig, run_id: str = "Digits_1-20261128-100000-abcd") -> RemoteLaunch:
    return RemoteLaunch(
        run_id=run_id, launch=2, task_id="Digits_1", task=task, log_path=Path("l"), final_status_file=Path("f"),
        order_file=Path("o"), start_limit_s=1, environment={}, nonce="n0nce",
    )  # fmt: skip


def objects() -> Iterator[Any]:
    listed = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    for name in listed:
        yield from yaml.safe_load_all((DEPLOY / name).read_text())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_that_is_shipped_is_valid(version: str) -> None:
    kinds = [each["kind"] for each in objects()]
    assert {"Deployment", "StatefulSet", "Role", "RoleBinding", "ServiceAccount", "Service"} <= set(kinds)
    for each in objects():
        kubernetes_validate.validate(each, version, strict=True)


def test_the_kustomization_lists_every_file_and_its_tasks_can_be_read() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    files = {*kustomization["resources"], *kustomization["configMapGenerator"][0]["files"]}
    assert files | {"kustomization.yaml"} == {path.name for path in DEPLOY.iterdir()}
    tasks = Tasks(DEPLOY / "tasks.toml")
    accounts = [each["metadata"]["name"] for each in objects() if each["kind"] == "ServiceAccount"]
    for task in tasks.by_id.values():
        assert task.kubernetes is not None
        assert task.kubernetes.service_account in accounts
    binding = next(each for each in objects() if each["kind"] == "RoleBinding")
    assert binding["subjects"][0]["namespace"] == kustomization["namespace"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_and_its_secret_are_valid_and_only_the_secret_holds_what_is_secret(version: str) -> None:
    task = Tasks(DEPLOY / "tasks.toml")["digits"].model_copy(update={"config": None})
    launch = launch_of(task)
    order = make_order(launch.run_id, 2, task, {"broker": "mqtt://b", "broker_password": "hunter2"}, b"\x01\x02")
    (secret,), job = secret_manifests(launch, order), job_manifest(launch, 9.5)
    for each in (secret, job):
        kubernetes_validate.validate(each, version, strict=True)
    assert "hunter2" in json.dumps(secret)
    assert not {"hunter2", "0102"} & set(json.dumps(job).replace('"', " ").split())
    pod = job["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 10
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "2Gi"}


def test_a_tasks_pod_settings_override_the_defaults() -> None:
    more = {"nodeSelector": {"gpu": "yes"}, "securityContext": {"runAsUser": 7}, "volumes": [{"name": "data"}]}
    wanted = KubernetesTask(image="i", pod=more, container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]})
    pod = job_manifest(launch_of(TaskConfig(module="m", kubernetes=wanted)), 1)["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "yes"}
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (7, True)
    assert [each["name"] for each in pod["volumes"]] == ["order", "state", "data"]
    assert [each["name"] for each in pod["containers"][0]["volumeMounts"]] == ["order", "state", "data"]


@pytest.mark.parametrize("run_id", ["A" * 64, "..x..", "a_b.c-1", "9"])
def test_every_run_id_makes_a_name_that_kubernetes_takes(run_id: str) -> None:
    name = job_name(run_id, 12)
    assert len(name) <= 63
    assert name.replace("-", "").isalnum()
    assert name == name.lower()
    assert job_name(run_id.swapcase(), 12) != name or run_id.swapcase() == run_id


@pytest.mark.parametrize("version", VERSIONS)
def test_an_order_that_no_secret_holds_is_in_several_of_which_the_job_names_each_in_order(version: str) -> None:
    launch = launch_of(TaskConfig(module="m", kubernetes=KubernetesTask(image="i")))
    order = bytes(range(32, 127)) * (2 * MAX_SECRET_BYTES // 95 + 1)
    secrets = secret_manifests(launch, order)
    job = job_manifest(launch, 9.5, len(secrets))
    for each in (*secrets, job):
        kubernetes_validate.validate(each, version, strict=True)
    pod = job["spec"]["template"]["spec"]
    names = [each["secret"]["name"] for each in pod["volumes"][0]["projected"]["sources"]]
    assert names == [each["metadata"]["name"] for each in secrets]
    assert all(len(name) <= 63 for name in names)
    parts = {key: value for each in secrets for key, value in each["stringData"].items()}
    assert max(map(len, parts.values())) <= MAX_SECRET_BYTES
    files = [path.rpartition("/")[2] for path in pod["containers"][0]["command"] if path.endswith(".json")]
    assert "".join(parts[name] for name in files).encode() == order
