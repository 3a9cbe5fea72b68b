"""What people do with a task's runs on its page: choose who trains, compare, and carry the results away."""

import pytest
from browsing import PATIENCE_MS, PHONE, Visitor
from bundles import PROJECT, zipped
from playwright.async_api import expect
from yard import Site

pytestmark = pytest.mark.long

_SIDEWAYS = """() => [document.documentElement, ...document.querySelectorAll('.fed-scroll, .ag-center-cols-viewport')]
  .filter((each) => each.scrollWidth > each.clientWidth + 1)
  .map((each) => `${each.className}: ${each.scrollWidth} > ${each.clientWidth}`)"""
"""The parts of the page that have to be scrolled sideways."""


async def test_only_the_clients_that_were_chosen_train(site: Site, visitor: Visitor) -> None:
    await site.start_manager()
    names = {f"02:00:00:00:01:0{number}": f"device-{number}" for number in range(1, 5)}
    for mac, name in names.items():
        await site.start_client(mac, client_name=name)
    visitor.url = site.manager_url
    page = await visitor.open(f"/tasks/{site.task_id}")
    await visitor.sees("4 of 4 clients that are online are idle")
    await visitor.sees("No runs yet")
    chosen = ["02:00:00:00:01:02", "02:00:00:00:01:04"]
    await page.get_by_label("Clients (none chosen").click()
    for mac in chosen:
        await page.get_by_role("option", name=names[mac]).click()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("listbox")).to_have_count(0)
    await visitor.check_accessibility()
    await page.get_by_label("Rounds", exact=True).fill("2")
    await page.get_by_role("button", name="Start").click()
    await page.wait_for_url("**/runs/**", timeout=PATIENCE_MS)
    await visitor.sees("2 chosen: 2 finished")
    run = await site.ask(f"/runs/{page.url.rpartition('/')[2]}")
    assert (run["outcome"], sorted(run["clients"])) == ("completed", chosen)
    for mac in names.keys() - set(chosen):
        view = site.observer.client(mac)
        assert view is not None
        assert view.status.last_trigger is None


async def test_a_version_of_the_app_is_made_current_after_a_question(site: Site, visitor: Visitor) -> None:
    await site.start_manager()
    visitor.url = site.manager_url
    apps = f"/tasks/{site.task_id}/apps"

    async def current() -> list[str]:
        return [each["version"] for each in (await site.ask(apps))["items"] if each["is_current"]]

    async def publish(version: str) -> None:
        files = {"pyproject.toml": PROJECT.replace("1.2.0", version).encode(), "digits/__init__.py": b""}
        async with site.manager_client() as api:
            await api.publish_app(site.task_id, zipped(files))

    await publish("1.0")
    await publish("2.0")
    page = await visitor.open(f"/tasks/{site.task_id}")
    await page.get_by_role("button", name="Make current").click()
    await visitor.sees("Make version 1.0 current?")
    await visitor.check_accessibility()
    await page.get_by_role("button", name="Leave it").click()
    assert await current() == ["2.0"]
    await page.get_by_role("button", name="Make current").click()
    await page.get_by_role("button", name="Make it current").click()
    await visitor.sees("Version 1.0 is current.")
    assert await current() == ["1.0"]
    await publish("3.7")  # somebody else, meanwhile
    await visitor.sees("3.7")


async def test_runs_are_compared_and_their_results_are_carried_away(site: Site, visitor: Visitor) -> None:
    await site.start_manager()
    await site.start_clients(2)
    runs = []
    for rounds in ("1", "3"):
        runs.insert(0, await site.start_run(num_rounds=int(rounds), min_clients=2))
        await site.observer.until_ended(runs[0])
    visitor.url = site.manager_url
    page = await visitor.open(f"/tasks/{site.task_id}")
    await expect(page.locator(".fed-swatch")).to_have_count(len(runs), timeout=PATIENCE_MS)
    for ending in ("accuracy", "loss"):
        drawn = {}
        for run_id in runs:
            rows = (await site.ask(f"/runs/{run_id}/rounds"))["items"]
            drawn[run_id.rpartition("-")[2]] = [[row["round"], row["metrics"][ending]] for row in rows]
        await visitor.draws(f"{ending.capitalize()} of its last runs", drawn.__eq__)
    await page.get_by_role("link", name=runs[0]).click()
    await visitor.sees("Model versions")
    for what in ("rounds", "metrics", "events", "clients"):
        async with page.expect_download() as download:
            await page.get_by_role("link", name=f"{what}.csv").click()
        assert (await download.value).suggested_filename == f"{runs[0]}-{what}.csv"
    await page.get_by_role("link", name="JSON").click()
    await visitor.sees(f'"run_id":"{runs[0]}"')


async def test_on_a_phone_nothing_has_to_be_scrolled_sideways(site: Site, visitor: Visitor) -> None:
    await site.start_manager()
    mac = next(iter(await site.start_clients(2)))
    run_id = await site.start_run(num_rounds=2, min_clients=2)
    await site.observer.until_ended(run_id)
    visitor.url = site.manager_url
    await visitor.page.set_viewport_size(PHONE)
    level = mac.replace(":", "-")
    for path, sign in (
        ("/", "Fleet"), ("/tasks", "Start a run"), (f"/tasks/{site.task_id}", run_id), (f"/runs/{run_id}", "download"),
        (f"/clients/{site.task_id}/{level}", "start trigger sent"),
    ):  # fmt: skip
        page = await visitor.open(path)
        await visitor.sees(sign)
        assert await page.evaluate(_SIDEWAYS) == [], path
        await visitor.check_accessibility()


async def test_a_client_that_comes_later_takes_its_place_in_the_table(site: Site, visitor: Visitor) -> None:
    await site.start_manager()
    for number in (1, 3):
        await site.start_client(f"02:00:00:00:01:0{number}", client_name=f"device-{number}")
    visitor.url = site.manager_url
    page = await visitor.open()
    await visitor.sees_count("Online", 2)
    await site.start_client("02:00:00:00:01:02", client_name="device-2")
    names = page.locator('.ag-pinned-left-cols-container [col-id="name"]')
    await expect(names).to_have_text(["device-1", "device-2", "device-3"], timeout=PATIENCE_MS)
