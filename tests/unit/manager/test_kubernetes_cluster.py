"""A kubeconfig that cannot be used is one sentence with its file, whatever the library raises for it."""

from pathlib import Path

import pytest

from fedops_mqtt.manager.kubernetes_cluster import Cluster
from fedops_mqtt.manager.kubernetes_manifests import KubernetesError

GOOD = """
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: x, context: {cluster: c, user: u, namespace: far}}]
users: [{name: u, user: {}}]
current-context: x
"""


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config"
    # The library has read KUBECONFIG when it was imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    return path


def test_a_kubeconfig_gives_the_cluster_and_the_namespace(kubeconfig: Path) -> None:
    kubeconfig.write_text(GOOD)
    assert Cluster(None).namespace == "far"
    assert Cluster("near").namespace == "near"


@pytest.mark.parametrize(
    "content",
    [
        b"clusters: [\n",
        b"a: b: c",
        b"only a text",
        b"",
        b"- a\n- b\n",
        b"\xff\xfe\xff",
        b"[" * 5000,
        GOOD.replace("current-context: x", "current-context: y").encode(),
        GOOD.replace("contexts: [", "contexts: [7, ").encode(),
        None,
    ],
)
def test_what_is_wrong_with_a_kubeconfig_is_one_sentence(kubeconfig: Path, content: bytes | None) -> None:
    if content is not None:
        kubeconfig.write_bytes(content)
    with pytest.raises(KubernetesError, match=r"no way to a Kubernetes cluster: kubeconfig .*config") as refused:
        Cluster(None)
    assert "\n" not in str(refused.value)
