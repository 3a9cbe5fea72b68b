"""The manager's API over real HTTP: what it tells, what it refuses and how."""

import asyncio
import json
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manager_parts import PATIENCE_S, A, B, House, api_at, until

from fedops_mqtt import AsyncManagerClient, ManagerClient
from fedops_mqtt.cli.roles import BUNDLE_SERVER
from fedops_mqtt.manager.app import run_manager
from fedops_mqtt.manager.client import ManagerRefusedError
from fedops_mqtt.protocol import ClientCondition
from fedops_mqtt.runtime.http_access import MAX_BODY_BYTES
from fedops_mqtt.runtime.systemd import ExitCode

MEDIA_TYPE = "application/problem+json"


async def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    problem = answer.json()
    assert (problem["status"], problem["type"]) == (status, "about:blank")
    return str(problem["detail"])


async def test_clients_are_listed_with_presence_and_reason_and_can_be_filtered(house: House) -> None:
    async with house.managed() as api, house.device(A, heartbeat_s=3):
        async with house.device(B):
            await until(lambda: has_clients(api, 2), "two clients")
        await until(lambda: has_clients(api, 1, presence="out"), "a client that left")
        await until(lambda: has_clients(api, 1, presence="online"), "a live word of the other")
        assert [each["client_mac"] for each in (await api.get("/clients", presence="online"))["items"]] == [A]
        assert (await api.get("/clients", task_id="no-such"))["total"] == 0
        assert (await api.get("/clients", status=ClientCondition.ONLINE, limit=1))["items"][0]["presence"] == "online"


async def has_clients(api, number: int, **query: str) -> bool:  # type: ignore[no-untyped-def]
    return bool((await api.get("/clients", **query))["total"] == number)


async def test_tasks_list_what_can_be_started(house: House) -> None:
    async with house.managed() as api, house.device(A):
        await until(lambda: has_clients(api, 1), "the client")
        (task,) = (await api.get("/tasks"))["items"]
        said = (task["task_id"], task["is_launchable"], task["num_rounds"], task["num_clients"], task["active_run"])
        assert said == (house.task_id, True, 3, 1, None)
        run_id = await api.start(house.task_id)
        assert (await api.get("/tasks"))["items"][0]["active_run"] == run_id


async def test_what_cannot_be_started_is_refused_with_the_reason(house: House) -> None:
    async with house.managed() as api:
        post = api.http.post
        assert "known: " + house.task_id in await refused(await post("/api/v1/runs", json={"task_id": "x"}), 404)
        bad = {"task_id": house.task_id, "clients": [A], "min_clients": 2}
        assert "only 1 clients are named" in await refused(await post("/api/v1/runs", json=bad), 422)
        bad = {"task_id": house.task_id, "num_rounds": 0, "clients": ["not-a-mac"], "rounds": 3}
        detail = await refused(await post("/api/v1/runs", json=bad), 422)
        assert all(part in detail for part in ("num_rounds", "clients.0", "body.rounds"))
        await refused(await post("/api/v1/runs", content=b"{", headers={"content-type": "application/json"}), 422)
        await refused(await api.http.get("/api/v1/runs/no-such"), 404)
        await refused(await post("/api/v1/runs/no-such/stop"), 404)
        await refused(await api.http.get("/api/v1/runs/no-such/events"), 404)
        await refused(await api.http.get("/api/v1/nothing"), 404)
        await refused(await api.http.put("/api/v1/runs"), 405)
        await refused(await api.http.delete("/api/v1/clients/junk"), 422)
        assert (await api.get("/runs"))["total"] == 0


async def test_a_configuration_that_no_trigger_could_carry_is_refused_by_its_bytes(house: House) -> None:
    """A Hangul character is one of a text, and three of UTF-8."""
    async with house.managed() as api:
        config = {f"key-{number}": "한" * 4000 for number in range(7)}
        answer = await api.http.post("/api/v1/runs", json={"task_id": house.task_id, "run_config": config})
        assert "84,062 bytes as UTF-8, at most 32,000" in await refused(answer, 422)
        assert await api.start(house.task_id, run_config={"key-1": "한" * 4000, "key-2": "한" * 4000})


async def test_a_broken_tasks_file_is_reported_and_a_mended_one_is_read(house: House) -> None:
    good = house.tasks_file.read_text()
    async with house.managed() as api:
        house.tasks_file.write_text("[tasks.a]\nmodul = 1")
        answer = await api.http.post("/api/v1/runs", json={"task_id": house.task_id})
        assert "tasks.a.modul" in await refused(answer, 503)
        house.tasks_file.write_text(good + "\n")
        await api.start(house.task_id)


async def test_a_body_over_the_limit_is_refused_before_it_is_read_to_its_end(house: House) -> None:
    async with house.managed() as api:
        too_much = b"x" * (MAX_BODY_BYTES + 1)
        await refused(await api.http.post("/api/v1/runs", content=too_much), 413)

        async def in_pieces():  # type: ignore[no-untyped-def]
            for _ in range(MAX_BODY_BYTES // 65536 + 1):
                yield b"x" * 65536

        await refused(await api.http.post("/api/v1/runs", content=in_pieces()), 413)


@pytest.mark.parametrize("origin", ["https://page.example.org", "http://127.0.0.1:1", "null", "http://[", ""])
async def test_a_page_of_another_origin_stops_nothing_though_a_post_without_a_body_needs_no_cors(
    house: House, origin: str
) -> None:
    async with house.managed() as api:
        answer = await api.http.post("/api/v1/runs/some-run/stop", headers={"Origin": origin})
        assert "another origin" in await refused(answer, 403)
        own = {"Origin": str(api.http.base_url).rstrip("/")}
        await refused(await api.http.post("/api/v1/runs/some-run/stop", headers=own), 404)


async def test_with_a_token_no_request_without_it_is_admitted(house: House) -> None:
    async with house.managed(manager_token="correct horse") as api, api_at(str(api.http.base_url)) as stranger:
        assert (await api.get("/health"))["role"] == "leading"
        answer = await stranger.http.get("/api/v1/health")
        assert "bearer token" in await refused(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer correct hors", "Basic correct horse", "correct horse", "Bearer \xff"):
            headers = {"Authorization": wrong.encode("latin-1")}
            await refused(await stranger.http.get("/api/v1/runs", headers=headers), 401)


@pytest.mark.parametrize("address", ["0.0.0.0:0", ":0", "[::]:0"])
async def test_beyond_this_machine_the_api_does_not_open_without_a_token(house: House, address: str) -> None:
    said: list[str] = []
    assert (
        await run_manager(house.settings(http=address), bundle_server=BUNDLE_SERVER, print_line=said.append)
        == ExitCode.CONFIG
    )
    assert "beyond this machine" in said[-1]
    assert "FEDOPS_MQTT_MANAGER_TOKEN" in said[-1]


async def test_a_taken_address_and_a_bad_tasks_file_end_the_manager_with_what_is_wrong(house: House) -> None:
    said: list[str] = []
    async with house.managed(state_dir=house.folder / "other") as api:
        taken = f"127.0.0.1:{api.http.base_url.port}"
        assert (
            await run_manager(house.settings(http=taken), bundle_server=BUNDLE_SERVER, print_line=said.append)
            == ExitCode.UNAVAILABLE
        )
        assert f"cannot listen on {taken}: Address already in use" in said[-1]
    house.tasks_file.write_text("[tasks.a]\nmodul = 1")
    assert await run_manager(house.settings(), bundle_server=BUNDLE_SERVER, print_line=said.append) == ExitCode.CONFIG
    assert "tasks.a.modul" in said[-1]


async def test_the_api_describes_itself(house: House) -> None:
    async with house.managed() as api:
        paths = (await api.get("/openapi.json"))["paths"]
        assert {"/api/v1/runs", "/api/v1/clients/{client_mac}", "/api/v1/runs/{run_id}/stop"} <= set(paths)


async def test_nothing_that_is_sent_to_it_is_answered_with_a_server_error(house: House) -> None:
    async with house.managed() as api:
        json_values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
            max_leaves=8,
        )
        bodies = st.binary(max_size=60) | st.builds(lambda value: json.dumps(value).encode(), json_values)
        fields = st.fixed_dictionaries({"task_id": json_values}, optional={"clients": json_values, "join": json_values})
        requests = st.tuples(
            st.sampled_from(["GET", "POST", "DELETE"]),
            st.sampled_from(["/runs", "/clients", "/runs/{}", "/runs/{}/stop", "/clients/{}", "/runs/{}/metrics"]),
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
            bodies | st.builds(lambda value: json.dumps(value).encode(), fields),
        )
        seen: list[tuple[str, str, bytes]] = []

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(requests)
        def collect(request: tuple[str, str, str, bytes]) -> None:
            method, path, name, body = request
            seen.append((method, path.replace("{}", quote(name, safe="")), body))

        collect()
        for method, path, body in seen:
            headers = {"content-type": "application/json"}
            answer = await api.http.request(method, "/api/v1" + path, content=body, headers=headers)
            assert answer.status_code < 500, (method, path, body, answer.text)


async def test_a_program_starts_a_run_and_waits_for_its_end_with_the_client(house: House) -> None:
    async with house.managed() as api, house.device(A, heartbeat_s=3):
        await until(lambda: has_clients(api, 1, presence="online"), "the client")
        async with AsyncManagerClient(str(api.http.base_url)) as manager:
            assert (await manager.health()).status == "ok"
            assert [client.client_mac for client in await manager.clients(presence="online")] == [A]
            run = await manager.start(house.task_id, num_rounds=2, min_clients=1)
            with pytest.raises(ManagerRefusedError, match=run.run_id) as busy:
                await manager.start(house.task_id)
            assert busy.value.status == 409
            with pytest.raises(TimeoutError, match=run.run_id):
                await manager.wait(run.run_id, timeout_s=0)
            await manager.stop(run.run_id, reason="that was enough")
            ended = await manager.wait(run.run_id, timeout_s=PATIENCE_S)
            assert (ended.outcome, ended.reason) == ("stopped", "that was enough")
            assert [known.run_id for known in await manager.runs(task_id=house.task_id)] == [run.run_id]
            with pytest.raises(ManagerRefusedError, match="no-such"):
                await manager.run("no-such")
            url = manager.url
        known = await asyncio.to_thread(tasks_of, url)
    assert known == [house.task_id]


def tasks_of(url: str) -> list[str]:
    with ManagerClient(url) as manager:
        return [task.task_id for task in manager.tasks()]
