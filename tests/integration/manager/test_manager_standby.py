"""A manager on standby answers at its address, and leads from the same one."""

import httpx
import pytest
from manager_parts import PATIENCE_S, A, B, House, api_at, manager_process, until_logged

PERSON = {"Accept": "text/html"}


async def test_a_standby_manager_answers_people_and_programs_and_then_leads_at_the_same_address(
    house: House,
) -> None:
    async with manager_process(house) as first, manager_process(house, waits=False) as second:
        url = (await until_logged(second, "waits for the lead")).rpartition(" ")[2]
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE_S) as standby:
            page = await standby.get("/runs/any", headers=PERSON)
            assert (page.status_code, "on standby" in page.text, page.headers["refresh"]) == (503, True, "2")
            assert f"pid {first.process.pid}" not in page.text
            refused = await standby.get("/api/v1/health")
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
            assert "another one leads" in refused.json()["detail"]
        first.kill()
        await until_logged(second, "ready")
        assert second.url == url
        async with api_at(url) as api:
            assert (await api.get("/health"))["role"] == "leading"


async def test_a_tasks_file_that_was_broken_meanwhile_keeps_no_manager_from_taking_over(house: House) -> None:
    async with (
        house.device(A) as a,
        house.device(B) as b,
        manager_process(house) as first,
        manager_process(house, waits=False) as second,
    ):
        await until_logged(second, "waits for the lead")
        async with api_at(first.url) as api:
            run_id = await api.start(house.task_id)
            await api.training(run_id)
        whole = house.tasks_file.read_text()
        house.tasks_file.write_text(whole + "\n[tasks.other]\nmodul = 'm'\n")
        first.kill()
        await until_logged(second, "ready")
        async with api_at(second.url) as api:
            await api.training(run_id)
            refused = await api.http.post("/api/v1/runs", json={"task_id": "other"})
            assert "tasks.other.modul: there is no such key, perhaps 'module' is meant" in refused.text
            house.command_server("finish", "all rounds done")
            a.finishes()
            b.finishes()
            assert (await api.ended(run_id))["outcome"] == "completed"
            house.tasks_file.write_text(whole)
            house.take_back("finish")
            await api.training(await api.start(house.task_id))


@pytest.mark.long
async def test_a_manager_whose_address_its_leader_has_waits_without_one(house: House) -> None:
    async with manager_process(house) as first:
        same = first.url.removeprefix("http://")
        async with manager_process(house, waits=False, http=same) as second:
            assert "another manager leads" in await until_logged(second, "on standby")
            first.kill()
            await until_logged(second, "ready")
            assert second.url == first.url
