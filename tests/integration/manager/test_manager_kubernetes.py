"""FL servers as Kubernetes Jobs, against a stand-in for the API server that checks what it gets; pods are processes."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from delivered_far import app_with_server, hands_out_its_app
from fault_proxy import FaultProxy
from kubernetes_stand_in import KubernetesStandIn, kill_session
from manager_parts import A, Api, B, House, launched_while_the_first_is_stuck, until

from fedops_mqtt.manager import kubernetes_launcher
from fedops_mqtt.manager.kubernetes_cluster import Cluster, JobView
from fedops_mqtt.manager.kubernetes_manifests import MAX_SECRET_BYTES, job_name

RIGHTS = Path(__file__).parents[3] / "deploy/kubernetes/manager-rbac.yaml"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesStandIn]:
    stand_in = KubernetesStandIn(tmp_path / "cluster")
    stand_in.write_kubeconfig(tmp_path / "home/.kube/config")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield stand_in
    stand_in.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The Jobs that a manager has asked the cluster for, one entry each time."""
    asked: list[str] = []

    class Noting(Cluster):
        def look(self, name: str) -> JobView:
            asked.append(name)
            return super().look(name)

    monkeypatch.setattr(kubernetes_launcher, "Cluster", Noting)
    return asked


def on_kubernetes(
    house: House, more: str = "", image: str = "my-image", limits: str | None = None, broker: str | None = None
) -> None:
    own = f', FEDOPS_MQTT_BROKER = "{broker}"' if broker else ""
    env = f'env = {{ FEDOPS_MQTT_STORE = "{house.folder}/models"{own} }}'
    lines = ["min_clients = 2", env, f'kubernetes = {{ image = "{image}", service_account = "fl-server"{more} }}']
    house.write_tasks(*lines, **({"limits": limits} if limits else {}))


def rights_of_the_shipped_manager() -> set[tuple[str, str]]:
    (role,) = (each for each in yaml.safe_load_all(RIGHTS.read_text()) if each["kind"] == "Role")
    return {(verb, name) for rule in role["rules"] for verb in rule["verbs"] for name in rule["resources"]}


async def log_of(api: Api, run_id: str) -> str:
    return str((await api.get(f"/runs/{run_id}/logs"))["text"])


async def finish(house: House, api: Api, run_id: str, *devices: Any) -> dict[str, Any]:
    house.command_server("finish", "all rounds done")
    for device in devices:
        device.finishes()
    return await api.ended(run_id)


async def test_a_run_as_a_job_completes_and_leaves_nothing_in_the_cluster(
    house: House, cluster: KubernetesStandIn
) -> None:
    on_kubernetes(house)
    async with house.managed() as api, house.device(A) as a, house.device(B) as b:
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        name = job_name(run_id, 1)
        order = json.loads(cluster.secrets[name]["stringData"]["order-0.json"])
        assert order["files"]["run_secret_file"] not in json.dumps(cluster.jobs[name])
        pod = cluster.jobs[name]["spec"]["template"]["spec"]
        assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("fl-server", False)
        house.command_server("unpublished")
        run = await finish(house, api, run_id, a, b)
        assert (run["outcome"], run["reason"], run["launch"]) == ("completed", "all rounds done", 1)
        await until(lambda: _so(not cluster.jobs and not cluster.secrets), "an empty cluster")
        exits = await until(lambda: api.events(run_id, "ServerExited"), "the exit")
        assert exits[0]["detail"]["reason"] == "FL server process exited with status 0"
        assert "FL server ended" in await log_of(api, run_id)
    assert cluster.refused == []
    assert cluster.asked <= rights_of_the_shipped_manager()


async def test_a_kubeconfig_that_cannot_be_used_is_the_runs_reason_and_ends_no_manager(
    house: House, cluster: KubernetesStandIn, tmp_path: Path
) -> None:
    on_kubernetes(house, limits="max_launches = 1")
    (tmp_path / "home/.kube/config").write_text("clusters: [\n")
    async with house.managed() as api:
        run = await api.ended(await api.start(house.task_id))
        assert "kubeconfig ~/.kube/config cannot be used: ParserError" in run["reason"]
        assert (await api.get("/health"))["status"] == "ok"
    assert cluster.jobs == {}


async def test_a_published_app_of_any_size_reaches_the_pod_and_is_handed_out_from_there(
    house: House, cluster: KubernetesStandIn
) -> None:
    on_kubernetes(house)
    bundle = app_with_server(padding=2 * MAX_SECRET_BYTES)
    async with house.managed() as api, house.device(A) as a:
        await hands_out_its_app(house, api, a, bundle)
        assert len(cluster.secrets) == 3
        (run,) = (await api.get("/runs"))["items"]
        await api.http.post(f"/api/v1/runs/{run['run_id']}/stop", json={})
        assert (await api.ended(run["run_id"]))["outcome"] == "stopped"
        await until(lambda: _so(not cluster.jobs and not cluster.secrets), "an empty cluster")
    assert cluster.refused == []
    assert cluster.asked <= rights_of_the_shipped_manager()


@pytest.mark.long
async def test_an_evicted_pod_is_reported_and_the_run_goes_on_in_another(
    house: House, cluster: KubernetesStandIn
) -> None:
    on_kubernetes(house)
    async with house.managed() as api, house.device(A), house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        pod = cluster.pods[job_name(run_id, 1)]
        pod.eviction = "The node was low on resource: memory."
        await asyncio.to_thread(kill_session, pod)
        await api.run_when(run_id, lambda run: run["launch"] == 2 and run["status"] == "running")
        exits = await api.events(run_id, "ServerExited")
        assert "Evicted: The node was low on resource: memory." in exits[0]["detail"]["reason"]


@pytest.mark.long
async def test_a_pod_that_is_never_seen_to_end_is_reported_and_no_other_launch_is_made(
    house: House, cluster: KubernetesStandIn
) -> None:
    on_kubernetes(house, limits="server_start_s = 20")
    async with house.managed(server_stop_grace_s=300) as api, house.device(A), house.device(B):
        await launched_while_the_first_is_stuck(
            house, api, lambda: [kill_session(pod) for pod in cluster.pods.values()], start_s=20
        )


@pytest.mark.long
async def test_a_stop_deletes_the_job_and_waits_for_its_pod(house: House, cluster: KubernetesStandIn) -> None:
    on_kubernetes(house)
    async with house.managed() as api, house.device(A), house.device(B):
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        server = house.server()
        await api.http.post(f"/api/v1/runs/{run_id}/stop", json={})
        assert (await api.ended(run_id))["outcome"] == "stopped"
        await until(lambda: api.events(run_id, "ServerExited"), "the exit")
        assert not server.is_running()
        assert (cluster.jobs, cluster.secrets, cluster.pods) == ({}, {}, {})


@pytest.mark.long
async def test_an_unreachable_api_server_is_reported_and_no_second_server_is_started(
    house: House, cluster: KubernetesStandIn, probes: list[bool]
) -> None:
    proxy = FaultProxy(house.broker.host, house.broker.port)
    async with proxy.running(), house.managed() as api, house.device(A) as a, house.device(B) as b:
        on_kubernetes(house, limits="server_lost_s = 1", broker=proxy.url)
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        server = house.server()
        await asyncio.to_thread(cluster.lose)
        await api.run_when(run_id, lambda run: "cluster does not answer: Kubernetes API" in (run["reason"] or ""))
        server.suspend()
        proxy.half_open()  # the broker publishes its will: only of a server that is disconnected is its line asked
        await until(lambda: _so(probes.count(False) >= 2), "two probes of its line, the launcher asked after the first")
        assert (await api.run(run_id))["launch"] == 1
        server.resume()
        proxy.heal()
        await asyncio.to_thread(cluster.start)
        await api.run_when(run_id, lambda run: not run["reason"])
        run = await finish(house, api, run_id, a, b)
        assert (run["outcome"], run["launch"]) == ("completed", 1)


@pytest.mark.long
async def test_a_manager_that_is_started_again_finds_the_job_and_its_whole_log(
    house: House, cluster: KubernetesStandIn
) -> None:
    on_kubernetes(house)
    async with house.device(A) as a, house.device(B) as b:
        async with house.managed(ends_servers=False) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
        server = house.server()
        async with house.managed() as api:
            await api.training(run_id)
            assert server.is_running()
            run = await finish(house, api, run_id, a, b)
            assert (run["outcome"], run["launch"]) == ("completed", 1)
            await until(lambda: api.events(run_id, "ServerExited"), "the exit")
            assert (await log_of(api, run_id)).count("FL server started") == 1


@pytest.mark.long
async def test_a_manager_that_is_started_again_while_the_api_server_is_away_replaces_nothing(
    house: House, cluster: KubernetesStandIn, looks: list[str]
) -> None:
    start_s = 20.0
    on_kubernetes(house, limits=f"server_start_s = {start_s}\nserver_lost_s = 300")
    async with house.device(A) as a, house.device(B) as b:
        async with house.managed(ends_servers=False) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
        server = house.server()
        await asyncio.to_thread(cluster.lose)
        async with house.managed() as api:
            await api.run_when(run_id, lambda run: "cluster does not answer: Kubernetes API" in (run["reason"] or ""))
            await asyncio.sleep(start_s)  # at least: the launch is now older than a start may take
            num_looks = len(looks)
            await until(lambda: _so(len(looks) >= num_looks + 3), "looks at the cluster after that")
            assert (await api.run(run_id))["launch"] == 1
            await asyncio.to_thread(cluster.start)
            await api.run_when(run_id, lambda run: not run["reason"])
            assert server.is_running()
            run = await finish(house, api, run_id, a, b)
            assert (run["outcome"], run["launch"]) == ("completed", 1)


@pytest.mark.long
async def test_an_image_that_cannot_be_pulled_fails_the_run_with_why(house: House, cluster: KubernetesStandIn) -> None:
    on_kubernetes(house, image="no-such-image", limits="max_launches = 1\nserver_start_s = 20")
    async with house.managed() as api:
        run = await api.ended(await api.start(house.task_id))
        assert "its pod waits: ImagePullBackOff: Back-off pulling image" in run["reason"]


@pytest.mark.long
async def test_a_part_of_a_pod_that_the_api_does_not_know_fails_the_run_with_its_name(
    house: House, cluster: KubernetesStandIn
) -> None:
    on_kubernetes(house, more=', pod = { nodeSelectr = { gpu = "yes" } }', limits="max_launches = 1")
    async with house.managed() as api:
        run = await api.ended(await api.start(house.task_id))
        assert "nodeSelectr" in run["reason"]
        assert (cluster.jobs, cluster.secrets) == ({}, {})


async def _so(answer: bool) -> bool:
    return answer
