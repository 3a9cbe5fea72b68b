"""What is created in a Kubernetes cluster for one launch of an FL server: a Job, and Secrets with its order."""

import hashlib
import math
import re
from typing import Any

from fedops_mqtt.manager.remote_launcher import RemoteLaunch
from fedops_mqtt.manager.remote_order import STATE_DIR, verb
from fedops_mqtt.manager.tasks import KubernetesTask, TaskConfig

KEEP_JOB_S = 3600
"""A finished Job that no manager deleted is deleted by the cluster after this."""
MAX_SECRET_BYTES = 1_000_000
"""Kubernetes takes 1 MiB (API reference, Secret); an order with an app's bundle may need several."""

CONTAINER = "fl-server"
FOLDER = "/var/lib/fedops-mqtt"
ORDER = "/run/fedops-mqtt"
_USER = 10001
"""Of the image that `deploy/Dockerfile` makes."""
LABEL = "fedops-mqtt"


class KubernetesError(OSError):
    """The cluster refused a request; the message has its reason."""


def job_name(run_id: str, launch: int) -> str:
    """Return the name of a launch's Job and first Secret: a DNS label (RFC 1123)."""
    plain = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")[:40]
    return f"fl-{plain}-{launch}-{run_label(run_id)[:8]}"


def run_label(run_id: str) -> str:
    """Return a label's value for a run: ids may be longer than labels."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:32]


def secret_name(job: str, number: int) -> str:
    """Return the name of a launch's Secret: the first, number 0, has the Job's."""
    return job if number == 0 else f"{job}-part-{number}"


def secret_manifests(launch: RemoteLaunch, order: bytes) -> list[dict[str, Any]]:
    """Return the Secrets that hold a launch's order, in parts as large as Kubernetes takes."""
    made = []
    for number, at in enumerate(range(0, len(order), MAX_SECRET_BYTES)):
        metadata = _metadata(launch)
        metadata["name"] = secret_name(metadata["name"], number)
        part = {_part_name(number): order[at : at + MAX_SECRET_BYTES].decode("ascii")}
        made.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "stringData": part})
    return made


def _part_name(number: int) -> str:
    return f"order-{number}.json"


def job_manifest(launch: RemoteLaunch, grace_s: float, num_parts: int = 1) -> dict[str, Any]:
    """Return the Job of a launch; it names the Secrets of its order and holds nothing of them."""
    wanted = wanted_of(launch.task)
    task = task_with_folder(launch.task)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": wanted.image,
        "command": verb(task, "start", *(f"{ORDER}/{_part_name(number)}" for number in range(num_parts))),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": math.ceil(grace_s),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if wanted.service_account is not None:
        pod["serviceAccountName"] = wanted.service_account
    container = _merged(container, wanted.container)
    container["volumeMounts"] = [
        {"name": "order", "mountPath": ORDER, "readOnly": True},
        {"name": "state", "mountPath": FOLDER},
        *container.get("volumeMounts", []),
    ]
    pod = _merged(pod, wanted.pod)
    job = job_name(launch.run_id, launch.launch)
    parts = [{"secret": {"name": secret_name(job, number)}} for number in range(num_parts)]
    pod["containers"] = [container, *pod.get("containers", [])]
    pod["volumes"] = [
        {"name": "order", "projected": {"sources": parts, "defaultMode": 0o440}},
        {"name": "state", "emptyDir": {}},
        *pod.get("volumes", []),
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(launch),
        "spec": {
            "backoffLimit": 0,  # the manager launches again, under the next number
            "podReplacementPolicy": "Failed",  # never two pods of one launch
            "ttlSecondsAfterFinished": KEEP_JOB_S,
            "template": {"metadata": {"labels": _labels(launch)}, "spec": pod},
        },
    }


def task_with_folder(task: TaskConfig) -> TaskConfig:
    """Return a task whose server keeps its state where the pod's volume is."""
    return task.model_copy(update={"env": {STATE_DIR: FOLDER, **task.env}})


def _metadata(launch: RemoteLaunch) -> dict[str, Any]:
    notes = {f"{LABEL}/run": launch.run_id, f"{LABEL}/task": launch.task_id}
    return {"name": job_name(launch.run_id, launch.launch), "labels": _labels(launch), "annotations": notes}


def _labels(launch: RemoteLaunch) -> dict[str, str]:
    """Return labels; a task's is there for a Service's selector."""
    return {
        "app.kubernetes.io/name": "fedops-mqtt",
        "app.kubernetes.io/component": "fl-server",
        f"{LABEL}/task": launch.task_id.strip("._-")[:63].strip("._-") or "task",
        f"{LABEL}/run": run_label(launch.run_id),
        f"{LABEL}/launch": str(launch.launch),
    }


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return ours with theirs laid over it, objects key by key."""
    merged = dict(ours)
    for name, value in theirs.items():
        before = merged.get(name)
        merged[name] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def wanted_of(task: TaskConfig) -> KubernetesTask:
    """Return a task's `kubernetes` table."""
    if task.kubernetes is None:
        raise ValueError("the task has no `kubernetes` table")
    return task.kubernetes
