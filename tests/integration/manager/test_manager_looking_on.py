"""What the manager tells to those who look on: event stream, Prometheus, history, exports, models, logs."""

import asyncio
import csv
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt
from bundles import PROJECT, zipped
from manager_parts import PATIENCE_S, A, Api, B, Device, House, until
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from fedops_mqtt.protocol import MetricsKind, Outcome, topics, utc_now
from fedops_mqtt.protocol.messages import ClientMetrics

FleetChange = tuple[str, dict[str, Any]]
Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@asynccontextmanager
async def stream(api: Api, path: str = "/api/v1/events", **query: Any) -> AsyncIterator[AsyncIterator[FleetChange]]:
    async with api.http.stream("GET", path, params=query) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield read(answer.aiter_lines())


async def read(lines: AsyncIterator[str]) -> AsyncIterator[FleetChange]:
    kind = ""
    async for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


async def news_when(news: AsyncIterator[FleetChange], kind: str, /, **facts: Any) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        async for each, record in news:
            if each == kind and all(record.get(name) == value for name, value in facts.items()):
                return record
    raise AssertionError(f"the stream ended without {kind} {facts}")


async def test_the_event_stream_reports_published_and_withdrawn_apps(house: House) -> None:
    async with house.managed() as api, stream(api, task_id=house.task_id) as news:
        await news_when(news, "ready")
        path = f"/api/v1/tasks/{house.task_id}/apps"
        for version in ("1.0", "2.0"):
            files = {"pyproject.toml": PROJECT.replace("1.2.0", version).encode()}
            await api.http.post(path, content=zipped(files), headers={"content-type": "application/zip"})
            await news_when(news, "app", task_id=house.task_id, version=version, is_current=True)
        await api.http.post(f"{path}/rollback")
        await news_when(news, "app", version="1.0", is_current=True)
        await api.http.delete(f"{path}/current")
        await news_when(news, "app", version="1.0", is_current=False)


async def finished_run(house: House, api: Api) -> str:
    async with house.device(A) as a, house.device(B) as b:
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        house.command_server("finish", "all rounds done")
        a.finishes()
        b.finishes(Outcome.FAILED, '=HYPERLINK("x")')
        await api.run_when(run_id, lambda run: run["outcome"] and has_ended(run, "finished", "failed"))
    return run_id


def has_ended(run: dict[str, Any], *statuses: str) -> bool:
    """Tell whether each client has the status; a run ends with its server's, and theirs may come later."""
    return [each["status"] for _, each in sorted(run["clients"].items())] == [*statuses]


async def numbers(api: Api) -> Numbers:
    answer = await api.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [each for family in parse_prometheus(answer.text) for each in family.samples]
    return {(each.name, tuple(sorted(each.labels.items()))): each.value for each in samples}


async def numbers_when(api: Api, are_so: Callable[[Numbers], object]) -> Numbers:
    async def look() -> Numbers | None:
        seen = await numbers(api)
        return seen if are_so(seen) else None

    seen: Numbers = await until(look, "the numbers")
    return seen


async def test_the_stream_sends_the_present_state_then_changes(house: House) -> None:
    async with house.managed() as api, house.device(A), stream(api, task_id=house.task_id) as news:
        await news_when(news, "ready")
        async with house.device(B):
            await news_when(news, "client", client_mac=B, status="online", presence="online")
            run_id = await api.start(house.task_id)
            await news_when(news, "run", run_id=run_id, status="pending")
            await news_when(news, "event", run_id=run_id, kind="TriggerFired", client_mac=B)
            await news_when(news, "client", client_mac=B, status="train-started")
        await news_when(news, "client", client_mac=B, presence="out", reason="shutdown")
    async with house.managed() as api, stream(api, "/api/events") as news:
        await news_when(news, "client", client_mac=B)


async def test_a_stream_of_one_task_gets_nothing_of_another(house: House) -> None:
    theirs = Device(house.broker.url, "somebody-elses", B)
    async with house.managed() as api, stream(api, task_id="somebody-elses") as news, house.device(A):
        await news_when(news, "ready")
        async with stream(api) as all_news:
            await news_when(all_news, "client", client_mac=A)
        async with theirs.living(), asyncio.timeout(PATIENCE_S):
            kind, record = await anext(news)
    assert (kind, record["client_mac"], record["task_id"]) == ("client", B, "somebody-elses")


async def test_prometheus_reads_clients_runs_and_delays(house: House) -> None:
    began = time.time()
    async with house.managed() as api, house.device(A, heartbeat_s=0.5):
        labels = (("presence", "online"), ("status", "online"), ("task_id", house.task_id))
        seen = await numbers_when(api, lambda seen: seen.get(("fedops_clients", labels)) == 1)
        assert began <= seen["fedops_clients_moved_seconds", ()] <= time.time()
        assert seen["fedops_broker_connected", ()] == 1
    async with house.managed() as api:
        await finished_run(house, api)
        task = ("task_id", house.task_id)
        seen = await numbers_when(  # counted once it is written down
            api, lambda seen: sum(value for (name, _), value in seen.items() if name == "fedops_runs_total") == 1
        )
        assert seen["fedops_trigger_to_training_seconds_count", (task,)] == 2
        assert seen["fedops_trigger_to_training_seconds_sum", (task,)] > 0
        assert seen["fedops_run_clients_total", (("status", "finished"), task)] == 1


async def test_malformed_messages_are_counted(house: House) -> None:
    async with house.managed() as api, aiomqtt.Client("127.0.0.1", int(house.broker.url.rpartition(":")[2])) as person:
        await person.publish(str(topics.client_status(house.task_id, B)), "{", qos=1, retain=True)

        async def is_counted() -> bool:
            return (await numbers(api))["fedops_malformed_messages_total", ()] == 1

        await until(is_counted, "the malformed message")


async def test_a_client_has_a_record_a_history_and_metrics(house: House) -> None:
    async with house.managed() as api:
        run_id = await finished_run(house, api)
        record = await api.get(f"/clients/{B}")
        assert (record["last_run"]["run_id"], record["last_run"]["outcome"]) == (run_id, "failed")
        events = (await api.get(f"/clients/{B}/events"))["items"]
        assert {"ClientChosen", "TriggerFired", "ClientSaid"} <= {each["kind"] for each in events}
        assert [each["id"] for each in events] == sorted(each["id"] for each in events)
        answer = await api.http.get("/api/v1/clients/02:00:00:00:00:77")
        assert (answer.status_code, answer.json()["title"]) == (404, "Not Found")


async def test_a_runs_history_can_be_had_as_csv(house: House) -> None:
    async with house.managed() as api:
        run_id = await finished_run(house, api)
        for what in ("rounds", "metrics", "events", "clients"):
            answer = await api.http.get(f"/api/v1/runs/{run_id}/{what}.csv")
            assert answer.status_code == 200, answer.text
            assert f'filename="{run_id}-{what}.csv"' in answer.headers["content-disposition"]
        clients = list(csv.DictReader(io.StringIO((await api.http.get(f"/api/v1/runs/{run_id}/clients.csv")).text)))
        assert [(row["client_mac"], row["status"]) for row in clients] == [(A, "finished"), (B, "failed")]
        assert clients[1]["reason"].startswith("'=HYPERLINK"), "a device's words never become a formula"
        answer = await api.http.get(f"/api/v1/runs/{run_id}/secrets.csv")
        assert answer.status_code == 422


async def test_numbers_of_clients_come_in_pages(house: House) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B), stream(api) as news:
        run_id = await api.start(house.task_id)
        await api.training(run_id)
        for round_ in (1, 2):
            said = ClientMetrics(
                kind=MetricsKind.SYSTEM, task_id=house.task_id, client_mac=A, instance=a.client.identity.instance,
                run_id=run_id, round=round_, values={"cpu": 12.5}, at=utc_now(),
            )  # fmt: skip
            await a.bus.publish(topics.client_metrics(house.task_id, A), said)
            await news_when(news, "metrics", client_mac=A, round=round_)
        (first,) = (await api.get(f"/runs/{run_id}/metrics", limit=1))["items"]
        (second,) = (await api.get(f"/runs/{run_id}/metrics", after=first["id"]))["items"]
        assert (first["round"], second["round"], second["values"]) == (1, 2, {"cpu": 12.5})
        assert len((await api.get(f"/clients/{A}/metrics"))["items"]) == 2


async def test_the_servers_log_is_read_part_by_part(house: House) -> None:
    house.commands.mkdir(exist_ok=True)
    house.command_server("crash")
    house.write_tasks("min_clients = 2", limits="max_launches = 1")
    async with house.managed() as api, house.device(A), house.device(B):
        run = await api.ended(await api.start(house.task_id))
        part = await api.get(f"/runs/{run['run_id']}/logs")
        assert "it crashed on purpose" in part["text"]
        assert part["is_over"]
        rest = await api.get(f"/runs/{run['run_id']}/logs", offset=part["next_offset"], launch=part["launch"])
        assert rest["text"] == ""


async def test_only_models_of_the_task_are_handed_out(house: House) -> None:
    folder = house.folder / "models" / house.task_id
    folder.mkdir(parents=True)
    header = json.dumps({"__metadata__": {"facts": json.dumps({"run_id": "r1", "round": 3})}}).encode()
    content = len(header).to_bytes(8, "little") + header
    (folder / "digits_gl_model_V2.safetensors").write_bytes(content)
    (folder / "broken_gl_model_V1.safetensors").write_bytes(b"no header")
    (house.folder / "models" / "secret_gl_model_V1.safetensors").write_bytes(content)
    async with house.managed() as api:
        (model,) = (await api.get(f"/tasks/{house.task_id}/models"))["items"]
        assert (model["version"], model["run_id"], model["round"]) == (2, "r1", 3)
        answer = await api.http.get(f"/api/v1/tasks/{house.task_id}/models/{model['file_name']}")
        assert answer.content == content
        for path in (f"{house.task_id}/models/..%2fsecret_gl_model_V1.safetensors", "..%2f/models/x", "../models/x"):
            assert (await api.http.get(f"/api/v1/tasks/{path}")).status_code in (404, 422)


async def test_every_operation_of_the_api_is_described_with_an_example(house: House) -> None:
    async with house.managed() as api:
        document = await api.get("/openapi.json")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                assert operation.get("description"), f"{method} {path}"
                assert _has_example(document, operation), f"{method} {path} shows no example"


def _has_example(document: dict[str, Any], operation: dict[str, Any]) -> bool:
    good = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
    for content in good.get("content", {}).values():
        schema = content.get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        known = document["components"]["schemas"].get(name, schema)
        if not (content.get("example") or known.get("examples")):
            return False
    return True
