"""What the objects of deploy/kubernetes refer to is there: names, keys, ports, images, folders, settings, options."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer
import yaml

from fedops_mqtt import __version__
from fedops_mqtt.cli.entry import make_app
from fedops_mqtt.manager.kubernetes_manifests import job_manifest
from fedops_mqtt.manager.remote_launcher import RemoteLaunch
from fedops_mqtt.manager.tasks import Tasks
from fedops_mqtt.runtime.settings import ENV_PREFIX, ManagerSettings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy/kubernetes"
KUSTOMIZATION_FILE = DEPLOY / "kustomization.yaml"
KUSTOMIZATION = yaml.safe_load(KUSTOMIZATION_FILE.read_text())
OBJECTS: list[dict[str, Any]] = [
    each for name in KUSTOMIZATION["resources"] for each in yaml.safe_load_all((DEPLOY / name).read_text())
]
TASKS = Tasks(DEPLOY / "tasks.toml").by_id


def named(kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in OBJECTS if each["kind"] == kind}


def jobs() -> list[dict[str, Any]]:
    """The Job of each task that is shipped."""
    launches = (
        RemoteLaunch(
            run_id="r", launch=1, task_id=name, task=task, log_path=Path("l"), final_status_file=Path("f"),
            order_file=Path("o"), start_limit_s=1, environment={}, nonce="n0nce",
        )
        for name, task in TASKS.items()
    )  # fmt: skip
    return [job_manifest(launch, 10) for launch in launches]


def templates() -> dict[str, dict[str, Any]]:
    """Every pod's template by the name of what makes it."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in [*OBJECTS, *jobs()]
        if "template" in each.get("spec", {})
    }


def containers() -> Iterator[dict[str, Any]]:
    for template in templates().values():
        yield from template["spec"]["containers"]


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(each)


def made_secrets() -> dict[str, set[str] | None]:
    """The Secrets that the file's head has one make, with their keys; None: a folder's files."""
    head = re.sub(r"\\\n#\s+", "", KUSTOMIZATION_FILE.read_text())
    made = {}
    for name, rest in re.findall(r"create secret generic (\S+) (.+)", head):
        keys = set(re.findall(r"--from-literal=(\w+)=", rest))
        made[name] = keys or None
    return made


def test_every_secret_is_made_before_and_has_the_key() -> None:
    made = made_secrets()
    used = set()
    for part in walk([*OBJECTS, *jobs()]):
        if "secretKeyRef" in part:
            used.add(part["secretKeyRef"]["name"])
            assert part["secretKeyRef"]["key"] in (made[part["secretKeyRef"]["name"]] or ())
        if "secretRef" in part:
            used.add(part["secretRef"]["name"])
        if "secretName" in part:
            used.add(part["secretName"])
    made_by_the_manager = {job["metadata"]["name"] for job in jobs()}
    assert used - made_by_the_manager == set(made)


def test_every_account_role_volume_and_map_is_there() -> None:
    maps = {each["name"] for each in KUSTOMIZATION["configMapGenerator"]}
    for part in walk([*OBJECTS, *jobs()]):
        assert part.get("claimName", "manager-state") in named("PersistentVolumeClaim")
        assert part.get("serviceAccountName", "manager") in named("ServiceAccount")
        if "configMap" in part:
            assert part["configMap"]["name"] in maps
        if "roleRef" in part:
            assert part["roleRef"]["name"] in named("Role")
        if "serviceName" in part:
            assert part["serviceName"] in named("Service")
    claimed = {each["metadata"]["name"] for part in walk(OBJECTS) for each in part.get("volumeClaimTemplates", [])}
    for template in templates().values():
        volumes = {each["name"] for each in template["spec"].get("volumes", [])} | claimed
        for container in template["spec"]["containers"]:
            assert {each["name"] for each in container["volumeMounts"]} <= volumes


@pytest.mark.parametrize("service", [each for each in OBJECTS if each["kind"] == "Service"], ids=str)
def test_every_service_leads_to_a_pod_and_its_port(service: dict[str, Any]) -> None:
    wanted = service["spec"]["selector"].items()
    found = [each for each in templates().values() if wanted <= each["metadata"]["labels"].items()]
    assert len(found) == 1
    ports = {port["containerPort"] for each in found[0]["spec"]["containers"] for port in each.get("ports", [])}
    ports |= {int(task.listen.rpartition(":")[2]) for task in TASKS.values()}
    assert {port["port"] for port in service["spec"]["ports"]} <= ports


def test_every_probe_asks_a_port_of_its_container() -> None:
    for container in containers():
        ports = {port["name"] for port in container.get("ports", [])}
        asked = {part["tcpSocket"]["port"] for part in walk(container) if "tcpSocket" in part}
        assert asked <= ports


def test_there_is_one_image_of_this_project_and_its_tag_is_this_version() -> None:
    image = f"fedops-mqtt:{__version__}"
    (tag,) = KUSTOMIZATION["images"]
    assert f"{tag['name']}:{tag['newTag']}" == image
    assert {each["image"] for each in containers()} == {"fedops-mqtt", image, "postgres:15"}
    build = re.search(r"docker build .*", KUSTOMIZATION_FILE.read_text())
    assert build is not None
    assert f"-t {image} " in build[0]
    assert {"kubernetes", "postgres", "s3"} <= set(re.findall(r"EXTRAS=(\S+)", build[0])[0].split(","))


def test_the_managers_settings_options_and_files_are_those_of_the_program() -> None:
    container = next(each for each in containers() if each["name"] == "manager")
    said = {each["name"] for each in container["env"] if each["name"].startswith(ENV_PREFIX)}
    assert said <= {ENV_PREFIX + name.upper() for name in ManagerSettings.model_fields}
    command = typer.main.get_command(make_app()).commands[container["args"][0]]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {each for each in container["args"] if each.startswith("--")} <= options
    mounts = {each["name"]: PurePosixPath(each["mountPath"]) for each in container["volumeMounts"]}
    config = re.search(r"FEDOPS_MQTT_CONFIG=(\S+)", (ROOT / "deploy/Dockerfile").read_text())
    assert config is not None
    assert PurePosixPath(config[1]).parent == mounts["bundle"]
    assert mounts["tasks"] == PurePosixPath(container["args"][container["args"].index("--tasks") + 1])
    for task in TASKS.values():
        assert task.config is not None
        place = mounts["tasks"].parent / task.config.resolve().relative_to(DEPLOY.resolve())
        assert place.parent in mounts.values()
