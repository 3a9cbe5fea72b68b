"""Requests to a Kubernetes API server, and the state of a launch from its answers. Everything here blocks."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedops_mqtt.manager.kubernetes_manifests import CONTAINER, LABEL, KubernetesError, run_label, secret_name
from fedops_mqtt.protocol import clip
from fedops_mqtt.runtime.extras import how_to_install

REQUEST_S = 10.0
"""One request to the API server."""
LOG_READ_S = 30.0
"""A log without new lines for this long is requested again."""
_MAX_PROBLEM = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A launch as the API server reports it. `pods` may run; `waits` is the reason why a pod has not started."""

    exists: bool
    is_finished: bool
    pods: tuple[str, ...] = ()
    has_started: bool = False
    waits: str | None = None
    lost: str | None = None
    """A pod that is being deleted, or of whose node nothing is known."""
    ended: str | None = None

    @property
    def has_ended(self) -> bool:
        """True when nothing of the launch can run any more."""
        return not self.pods and (not self.exists or self.is_finished)


class Cluster:
    """What we ask of the API server; every method blocks for `REQUEST_S` at most.

    Raises (every method):
        KubernetesError: the cluster refuses.
        ConnectionError: it cannot be asked.
    """

    def __init__(self, namespace: str | None) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise KubernetesError(how_to_install(error)) from error
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)
            found = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text(encoding="utf-8")
        except config.ConfigException:
            found = _load_kubeconfig(settings)
        except (OSError, ValueError) as error:
            raise KubernetesError(f"no way to a Kubernetes cluster: {_one_line(error)}") from error
        settings.retries = False
        self.namespace = namespace or found.strip()
        api = client.ApiClient(settings)
        self._core, self._batch = client.CoreV1Api(api), client.BatchV1Api(api)

    def create(self, secrets: Sequence[dict[str, Any]], job: dict[str, Any]) -> None:
        """Create a launch's Secrets and Job, of which the Secrets are parts; what is there already is taken."""
        strict: dict[str, Any] = {"field_validation": "Strict"}
        for secret in secrets:
            self._call(self._core.create_namespaced_secret, self.namespace, secret, may_be_there=True, **strict)
        made = self._call(self._batch.create_namespaced_job, self.namespace, job, may_be_there=True, **strict)
        if made is not None:
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": made.metadata.name, "uid": made.metadata.uid}
            part = {"metadata": {"ownerReferences": [owner]}}
            for secret in secrets:
                self._call(self._core.patch_namespaced_secret, secret["metadata"]["name"], self.namespace, part)

    def look(self, name: str) -> JobView:
        """Return how a launch stands."""
        job = self._call(self._batch.read_namespaced_job, name, self.namespace, may_be_gone=True)
        selector = f"batch.kubernetes.io/job-name={name}"
        listed = self._call(self._core.list_namespaced_pod, self.namespace, label_selector=selector)
        conditions = (job.status.conditions or []) if job is not None and job.status is not None else []
        ends = [each for each in conditions if each.type in ("Complete", "Failed") and each.status == "True"]
        view = JobView(exists=job is not None, is_finished=bool(ends))
        for pod in listed.items:
            view = _with_pod(view, pod)
        if view.ended is None and ends and ends[0].type == "Failed":
            view = replace(view, ended=f"its Job failed: {ends[0].reason}: {ends[0].message}")
        return view

    def log(self, pod: str) -> Any:
        """Return the response that brings a pod's log line by line, each with its time, while the pod runs."""
        return self._call(
            self._core.read_namespaced_pod_log, pod, self.namespace, container=CONTAINER, follow=True,
            timestamps=True, _preload_content=False, _request_timeout=(REQUEST_S, LOG_READ_S),
        )  # fmt: skip

    def pod_of(self, name: str) -> str | None:
        """Return the pod of a launch whose log can be read."""
        selector = f"batch.kubernetes.io/job-name={name}"
        listed = self._call(self._core.list_namespaced_pod, self.namespace, label_selector=selector)
        return next((pod.metadata.name for pod in listed.items if _state_of(pod) is not None), None)

    def delete(self, name: str) -> None:
        """Delete a launch: its pods get SIGTERM, and SIGKILL after their grace."""
        background: dict[str, Any] = {"propagation_policy": "Background"}
        self._call(self._batch.delete_namespaced_job, name, self.namespace, may_be_gone=True, **background)
        # How many Secrets there are is known to whoever created them only, and the manager may not list Secrets.
        number = 0
        while self._call(
            self._core.delete_namespaced_secret, secret_name(name, number), self.namespace, may_be_gone=True
        ):
            number += 1

    def launches_of(self, run_id: str) -> list[str]:
        """Return the names of a run's Jobs."""
        selector = f"{LABEL}/run={run_label(run_id)}"
        listed = self._call(self._batch.list_namespaced_job, self.namespace, label_selector=selector)
        return [str(job.metadata.name) for job in listed.items]

    def _call(
        self, method: Callable[..., Any], *args: Any, may_be_gone: bool = False, may_be_there: bool = False, **more: Any
    ) -> Any:
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config import ConfigException
        from urllib3.exceptions import HTTPError

        try:
            return method(*args, **{"_request_timeout": REQUEST_S, **more})
        except ApiException as error:
            if (may_be_gone and error.status == 404) or (may_be_there and error.status == 409):
                return None
            problem = clip(f"{error.status} {error.reason}: {_message_of(error)}", _MAX_PROBLEM)
            if error.status is None or error.status == 429 or error.status >= 500:
                raise ConnectionError(f"Kubernetes API: {problem}") from error
            raise KubernetesError(f"Kubernetes API: {problem}") from error
        except (HTTPError, ConfigException, OSError) as error:  # the last two of credentials, which are read again
            raise ConnectionError(clip(f"Kubernetes API: {error}", _MAX_PROBLEM)) from error
        except ValueError as error:  # pydantic's, of a `pod` or `container` that is no part of the API
            raise KubernetesError(clip(f"not a Kubernetes object: {error}", _MAX_PROBLEM)) from error


def _load_kubeconfig(settings: Any) -> str:
    """Take the cluster of the kubeconfig's current context into `settings`; return the context's namespace.

    Raises:
        KubernetesError: it cannot be used.
    """
    from kubernetes import config

    try:
        config.load_kube_config(client_configuration=settings)
        return str(config.list_kube_config_contexts()[1]["context"].get("namespace") or "default")
    except Exception as error:  # the library raises what its YAML parser does, and TypeError for other forms
        file = config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION  # KUBECONFIG, where that is set
        problem = f"no way to a Kubernetes cluster: kubeconfig {file} cannot be used: {_one_line(error)}"
        raise KubernetesError(clip(problem, _MAX_PROBLEM)) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _message_of(error: Any) -> str:
    """Return the sentence in the API server's answer (Status.message)."""
    with suppress(ValueError, AttributeError, TypeError, RecursionError):
        return str(json.loads(error.body)["message"])
    return ""


def _with_pod(view: JobView, pod: Any) -> JobView:
    name, status = pod.metadata.name, pod.status
    state = _state_of(pod)
    has_started = view.has_started or state is not None
    if status.phase in ("Succeeded", "Failed"):
        return replace(view, has_started=has_started, ended=_pod_end(pod))
    lost = view.lost
    if pod.metadata.deletion_timestamp is not None or status.phase == "Unknown":
        node = pod.spec.node_name if pod.spec is not None else None
        lost = f"pod {name} is to end and has not been seen to (node {node}, phase {status.phase})"
    return replace(view, pods=(*view.pods, name), has_started=has_started, waits=_why_waiting(pod), lost=lost)


def _state_of(pod: Any) -> Any:
    """Return the server's container as running or terminated; None before that."""
    for each in pod.status.container_statuses or []:
        if each.name == CONTAINER and each.state is not None:
            return each.state.running or each.state.terminated
    return None


def _pod_end(pod: Any) -> str:
    parts = []
    for each in pod.status.container_statuses or []:
        if each.name == CONTAINER and each.state is not None and (end := each.state.terminated) is not None:
            parts.append(f"its container ended with status {end.exit_code} ({end.reason})")
    if pod.status.reason or pod.status.message:
        parts.append(f"pod {pod.metadata.name}: {pod.status.reason}: {pod.status.message}")
    return "; ".join(parts) or f"pod {pod.metadata.name} is {pod.status.phase}"


def _why_waiting(pod: Any) -> str | None:
    for each in pod.status.container_statuses or []:
        if each.state is not None and each.state.waiting is not None:
            return f"{each.state.waiting.reason}: {each.state.waiting.message or ''}".rstrip(": ")
    for each in pod.status.conditions or []:
        if each.type == "PodScheduled" and each.status == "False":
            return f"{each.reason}: {each.message}"
    return None
