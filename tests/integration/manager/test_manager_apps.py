"""Apps over the manager's API: published, listed, gone back to, handed on to servers and triggers."""

import asyncio
import hashlib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from bundles import CODE, PROJECT, zipped
from manager_parts import A, Api, B, House, api_at, manager_process, until
from test_manager_api import refused

from fedops_mqtt import AsyncManagerClient, ManagerClient
from fedops_mqtt.apps import AppBundle, AppSignature, AppSigner, make_signing_key, read_bundle
from fedops_mqtt.manager.client import ManagerRefusedError

ZIP = {"content-type": "application/zip"}


def a_bundle(version: str = "1.2.0", **files: bytes) -> bytes:
    project = {"pyproject.toml": PROJECT.replace("1.2.0", version).encode(), "digits/__init__.py": CODE.encode()}
    return zipped({**project, **files})


async def publish(api: Api, house: House, data: bytes, **query: Any) -> httpx.Response:
    return await api.http.post(f"/api/v1/tasks/{house.task_id}/apps", content=data, headers=ZIP, params=query)


async def test_versions_are_published_listed_and_rolled_back(house: House) -> None:
    async with house.managed() as api:
        first = (await publish(api, house, a_bundle("1.0"))).json()
        second = (await publish(api, house, a_bundle("2.0"))).json()
        assert (first["task_id"], first["version"], first["config"]) == (
            house.task_id, "1.0", {"lr": 0.1, "local.epochs": 2},
        )  # fmt: skip
        path = f"/tasks/{house.task_id}/apps"
        assert [(each["version"], each["is_current"]) for each in (await api.get(path))["items"]] == [
            ("2.0", True),
            ("1.0", False),
        ]
        details = await api.get(f"/apps/{second['digest']}")
        assert [each["path"] for each in details["files"]] == ["pyproject.toml", "digits/__init__.py"]
        assert (await api.http.get(f"/api/v1/apps/{second['digest']}/bundle")).content == a_bundle("2.0")
        back = (await api.http.post(f"/api/v1{path}/rollback")).json()
        assert (back["version"], back["is_current"]) == ("1.0", True)
        await refused(await api.http.post(f"/api/v1{path}/rollback"), 409)
        await refused(await api.http.post(f"/api/v1{path}/rollback", json={"version": "9"}), 404)
        nothing = await refused(await api.http.post("/api/v1/tasks/letters/apps/rollback"), 409)
        assert "no app was published for task 'letters'" in nothing
        assert (await api.http.delete(f"/api/v1{path}/current")).json()["is_current"] is False
        await refused(await api.http.delete(f"/api/v1{path}/current"), 404)
        (task,) = (await api.get("/tasks"))["items"]
        assert task["app_digest"] is None


async def test_a_disk_that_takes_no_bundle_is_the_reason_of_the_refusal(house: House) -> None:
    folder = house.folder / "state" / "manager" / "apps"
    async with house.managed() as api:
        folder.parent.mkdir(exist_ok=True)
        folder.write_text("a file is where the folder should be")
        reason = await refused(await publish(api, house, a_bundle()), 500)
        assert "on the manager's machine: " in reason
        assert str(folder) in reason
        assert (await api.get(f"/tasks/{house.task_id}/apps"))["total"] == 0


async def test_what_cannot_be_published_is_refused_with_the_reason(house: House) -> None:
    async with house.managed(app_max_bytes=2048) as api:
        assert "app-malformed" in await refused(await publish(api, house, b"no zip"), 422)
        await refused(await publish(api, house, b""), 422)
        await refused(await publish(api, house, b"x" * 2049), 413)
        await refused(await publish(api, house, a_bundle(), key_id="0" * 16), 422)
        await refused(await publish(api, house, a_bundle(), key_id="x", signature="y"), 422)
        await refused(await api.http.post("/api/v1/tasks/a%20b/apps", content=a_bundle(), headers=ZIP), 422)
        assert (await api.get(f"/tasks/{house.task_id}/apps"))["total"] == 0
        await refused(await api.http.get(f"/api/v1/apps/{'0' * 64}"), 404)
        await refused(await api.http.get("/api/v1/apps/..%2f..%2fmanager.db/bundle"), 404)
        await refused(await api.http.get("/api/v1/apps/nothing/bundle"), 404)


async def test_python_programs_publish_list_go_back_and_download_with_typed_answers(house: House) -> None:
    signer = AppSigner(make_signing_key())
    async with house.managed(app_signers=signer.public_key) as api:
        url, task_id = str(api.http.base_url), house.task_id

        def sign(bundle: AppBundle) -> AppSignature:
            return signer.sign(digest=bundle.digest, task_id=task_id, version=bundle.version)

        async with AsyncManagerClient(url) as manager:
            first = await manager.publish_app(task_id, a_bundle("1.0"), signature=sign(read_bundle(a_bundle("1.0"))))
            second = await manager.publish_app(task_id, a_bundle("2.0"), signature=sign(read_bundle(a_bundle("2.0"))))
            assert [each.version for each in await manager.apps(task_id)] == ["2.0", "1.0"]
            assert (await manager.roll_back_app(task_id)).digest == first.digest
            assert (await manager.withdraw_app(task_id)).is_current is False
            assert (await manager.roll_back_app(task_id, second.digest)).version == "2.0"
            with pytest.raises(ManagerRefusedError, match="app-unsigned"):
                await manager.publish_app(task_id, a_bundle("3.0"))

        def ask() -> None:
            with ManagerClient(url) as manager:
                again = manager.publish_app(task_id, a_bundle("1.0"), signature=sign(read_bundle(a_bundle("1.0"))))
                assert (again.digest, again.is_current) == (first.digest, True)
                assert [each.version for each in manager.apps(task_id)] == ["1.0", "2.0"]
                assert manager.roll_back_app(task_id, "2.0").is_current
                assert manager.withdraw_app(task_id).version == "2.0"
                details = manager.app(second.digest)
                assert (details.published[0].key_id, len(details.files)) == (second.key_id, 2)
                assert manager.download_app(first.digest) == a_bundle("1.0")
                with pytest.raises(ManagerRefusedError) as unknown:
                    manager.download_app("../../health")
                assert unknown.value.status == 404

        await asyncio.to_thread(ask)


async def test_beyond_this_machine_only_signed_apps_are_taken(house: House) -> None:
    async with house.managed(http="0.0.0.0:0", manager_token="token") as api:
        assert "app-unsigned" in await refused(await publish(api, house, a_bundle()), 422)
        signer = AppSigner(make_signing_key())
        digest = "0" * 64
        signed = signer.sign(digest=digest, task_id=house.task_id, version="1.2.0").model_dump()
        taken = (await publish(api, house, a_bundle(), **signed)).json()
    async with house.managed(app_signers=signer.public_key) as api:
        assert "app-unsigned" in await refused(await publish(api, house, a_bundle()), 422)
        assert "app-bad-signature" in await refused(await publish(api, house, a_bundle(), **signed), 422)
        digest = hashlib.sha256(a_bundle()).hexdigest()
        wanted = {"digest": digest, "task_id": house.task_id, "version": "1.2.0"}
        foreign = AppSigner(make_signing_key()).sign(**wanted).model_dump()
        assert "app-unknown-signer" in await refused(await publish(api, house, a_bundle(), **foreign), 422)
        (kept,) = (await api.get(f"/tasks/{house.task_id}/apps"))["items"]
        assert kept["published_at"] == taken["published_at"]
        assert (await publish(api, house, a_bundle(), **signer.sign(**wanted).model_dump())).status_code == 201


async def test_servers_and_triggers_get_the_app_and_the_settings_of_the_run(house: House) -> None:
    async with house.managed() as api, house.device(A) as a, house.device(B):
        without_server = zipped(
            {"pyproject.toml": PROJECT.replace('serverapp = "digits.server_app:app"', "").encode(), "x.py": b""}
        )
        app = (await publish(api, house, without_server)).json()
        detail = await refused(
            await api.http.post("/api/v1/runs", json={"task_id": house.task_id, "run_config": {"rate": 1}}), 422
        )
        assert "rate" in detail
        config = {"lr": 0.5, "local.epochs": 3}
        run_id = await api.start(house.task_id, run_config=config)
        run = await api.training(run_id)
        assert (run["app_digest"], run["app_version"], run["run_config"]) == (app["digest"], "1.2.0", config)
        (start,) = [each for each in a.starts if each.run_id == run_id]
        assert start.app is not None
        assert (start.app.digest, start.app.size, start.run_config) == (app["digest"], len(without_server), config)
        environment = house.server().environ()
        assert environment["FEDOPS_MQTT_APP_FILE"].endswith(f"{app['digest']}.fab")
        assert tomllib.loads(environment["FEDOPS_MQTT_RUN_CONFIG"].replace(" ", "\n")) == {
            "lr": 0.5, "local": {"epochs": 3},
        }  # fmt: skip
        await publish(api, house, a_bundle("3.0"))
        assert (await api.run(run_id))["app_digest"] == app["digest"]
        assert (await api.get(f"/apps/{app['digest']}"))["runs"][0]["run_id"] == run_id
        assert (await api.get("/runs", app_digest=app["digest"]))["total"] == 1


@pytest.mark.long
async def test_a_run_goes_on_with_its_app_when_another_manager_takes_over(house: House) -> None:
    without_server = zipped(
        {"pyproject.toml": PROJECT.replace('serverapp = "digits.server_app:app"', "").encode(), "x.py": b""}
    )
    async with house.device(A) as a, house.device(B):
        async with manager_process(house) as manager, api_at(manager.url) as api:
            app = (await publish(api, house, without_server)).json()
            run_id = await api.start(house.task_id, run_config={"lr": 2.0})
            await api.training(run_id)
            manager.kill()
            await manager.gone()
        house.server().kill()
        shutil.rmtree(house.folder / "state" / "manager" / "apps")  # as on another host with the same database
        async with manager_process(house) as manager, api_at(manager.url) as api:
            await api.run_when(run_id, lambda run: run["launch"] == 2)
            (task,) = (await api.get("/tasks"))["items"]
            assert task["app_digest"] == app["digest"]

            async def is_started_again() -> bool:
                return any(start.launch == 2 for start in a.starts)

            await until(is_started_again, "a trigger of the second launch")
            again = a.starts[-1]
            assert again.app is not None
            assert (again.app.digest, again.run_config) == (app["digest"], {"lr": 2.0})
            assert type((again.run_config or {})["lr"]) is float
            bundle = Path(house.server().environ()["FEDOPS_MQTT_APP_FILE"])
            assert bundle.name == f"{app['digest']}.fab"
            assert await asyncio.to_thread(bundle.read_bytes) == without_server


async def test_a_server_app_that_cannot_be_imported_fails_its_run_at_once_with_the_first_cause(house: House) -> None:
    async with house.managed(http="127.0.0.1:0") as api, house.device(A):
        broken = a_bundle(**{"digits/server_app.py": b"import no_such_module_here\n"})
        assert (await publish(api, house, broken)).status_code == 201
        run = await api.ended(await api.start(house.task_id, min_clients=1))
        assert (run["outcome"], run["launch"]) == ("failed", 1)
        assert "no_such_module_here" in run["reason"]


async def test_a_task_that_exists_by_publishing_only_can_be_started(house: House) -> None:
    async with house.managed() as api:
        app = (await api.http.post("/api/v1/tasks/letters/apps", content=a_bundle(), headers=ZIP)).json()
        tasks = {each["task_id"]: each for each in (await api.get("/tasks"))["items"]}
        assert (tasks["letters"]["is_launchable"], tasks["letters"]["app_digest"]) == (True, app["digest"])
        run = await api.run(await api.start("letters"))
        assert (run["task_id"], run["app_version"]) == ("letters", "1.2.0")


@pytest.mark.parametrize(
    "config",
    [{"a b": 1}, {"": 1}, {"x": 2**63}, {"x": [1]}, {"x": None}, {"x": {"y": 1}}, {"x": "y" * 40_000}, {"x": "\ud800"}],
)
async def test_settings_that_cannot_travel_are_refused(house: House, config: dict[str, Any]) -> None:
    async with house.managed() as api:
        body = json.dumps({"task_id": house.task_id, "run_config": config})
        headers = {"content-type": "application/json"}
        problem = await refused(await api.http.post("/api/v1/runs", content=body, headers=headers), 422)
        assert "\n" not in problem
        assert len(problem) < 400
        assert (await api.get("/runs"))["total"] == 0
