"""The page as people use it: a run started, watched and stopped, a client that dies, nobody there, no broker."""

import signal

import httpx
import pytest
from browsing import LANES, PATIENCE_MS, Visitor
from playwright.async_api import expect
from yard import TIMEOUT_S, Site

from fedops_mqtt.bus import Mosquitto

pytestmark = pytest.mark.long

TOKEN = "a-token-of-some-length"
AWAY = ("net::ERR_", "WebSocket connection to")
"""What a browser says aloud while nobody listens."""


async def open_task(site: Site, visitor: Visitor) -> None:
    await visitor.open(f"/tasks/{site.task_id}")
    await visitor.sees("Start a run")


async def start_run(site: Site, visitor: Visitor, *, rounds: int, at_least: int) -> str:
    """Start a run from the page, and return its id once its page is open."""
    await open_task(site, visitor)
    await visitor.page.get_by_label("Rounds", exact=True).fill(str(rounds))
    await visitor.page.get_by_label("Needs at least").fill(str(at_least))
    await visitor.page.get_by_role("button", name="Start").click()
    await visitor.page.wait_for_url("**/runs/**", timeout=PATIENCE_MS)
    return visitor.page.url.rpartition("/")[2]


async def test_a_run_is_started_and_watched_to_its_end(site: Site, visitor: Visitor) -> None:
    await site.start_manager()
    visitor.url = site.manager_url
    await visitor.open()
    await visitor.sees("No clients yet")
    clients = await site.start_clients(2)
    await visitor.sees_count("Online", 2)
    await expect(visitor.page.locator('.ag-row [col-id="status"]')).to_have_count(2)
    await visitor.check_accessibility()
    run_id = await start_run(site, visitor, rounds=3, at_least=2)
    await visitor.sees("completed")
    await visitor.sees("download")
    rounds = (await site.ask(f"/runs/{run_id}/rounds"))["items"]
    assert [row["round"] for row in rounds] == [0, 1, 2, 3]
    accuracy = [[row["round"], row["metrics"]["accuracy"]] for row in rounds]
    await visitor.draws("Accuracy by round", lambda shown: shown.get("accuracy") == accuracy)
    parts = dict.fromkeys(("train", "transfer", "wait"), 3)
    times = await visitor.draws("Time by round", lambda shown: {part: len(shown[part]) for part in shown} == parts)
    for index, row in enumerate(rounds[1:]):
        assert abs(sum(values[index] for values in times.values()) - row["duration_s"]) < 0.01
    lanes = set(range(len(clients)))
    await visitor.draws(LANES, lambda shown: {bar["value"][0] for bar in shown.get("phases", [])} == lanes)
    await visitor.check_accessibility()
    link = visitor.page.get_by_role("link", name="download")
    async with visitor.page.expect_download() as download:
        await link.click()
    assert (await download.value).suggested_filename.endswith("_V1.safetensors")
    mac = next(iter(clients)).replace(":", "-")
    await visitor.open(f"/clients/{site.task_id}/{mac}")
    await visitor.sees("start trigger sent")
    await visitor.check_accessibility()
    await open_task(site, visitor)
    await visitor.sees(run_id)
    await visitor.check_accessibility()


async def test_the_fleets_table_is_searched_filtered_and_sorted(site: Site, visitor: Visitor) -> None:
    await site.start_manager()
    for number, name in enumerate(("attic", "cellar", "garage")):
        await site.start_client(f"02:00:00:00:01:0{number}", client_name=name)
    gone = await site.start_client("02:00:00:00:01:09", client_name="shed", task_id="weather")
    visitor.url = site.manager_url
    page = await visitor.open()
    await visitor.sees_count("Online", 4)
    await gone.end()
    await visitor.sees_count("Offline", 1)
    names = page.locator('.ag-pinned-left-cols-container [col-id="name"]')
    await page.get_by_label("Search").fill("01:01")
    await expect(names).to_have_text(["cellar"], timeout=PATIENCE_MS)
    await page.get_by_label("Search").fill("nobody")
    await visitor.sees("No client is like this")
    await page.get_by_label("Search").fill("")
    await page.get_by_role("button", name="Offline").click()
    await expect(names).to_have_text(["shed"], timeout=PATIENCE_MS)
    await page.get_by_role("button", name="All").click()
    await page.get_by_label("Task").click()
    await page.get_by_role("option", name=site.task_id).click()
    await expect(names).to_have_count(3, timeout=PATIENCE_MS)
    for order in (["attic", "cellar", "garage"], ["garage", "cellar", "attic"]):
        await page.locator('.ag-header-cell[col-id="name"]').click()
        await expect(names).to_have_text(order, timeout=PATIENCE_MS)


async def test_a_client_that_dies_is_seen_to_go_and_a_run_is_stopped(site: Site, visitor: Visitor) -> None:
    await site.start_manager()
    clients = await site.start_clients(2, "yard_apps:flat_out", system_interval_s=0.5)
    visitor.url = site.manager_url
    run_id = await start_run(site, visitor, rounds=50, at_least=1)
    await visitor.sees("2 training")
    mac, client = next(iter(clients.items()))
    await visitor.open(f"/clients/{site.task_id}/{mac.replace(':', '-')}")
    await visitor.sees("System load while training")
    await visitor.open()
    await visitor.sees_count("Training", 2)
    await visitor.sees("CPU")
    client.process.send_signal(signal.SIGKILL)
    await visitor.sees_count("Offline", 1)
    await expect(visitor.page.locator('.ag-row [col-id="reason"]', has_text="lost")).to_be_visible(timeout=PATIENCE_MS)
    await visitor.open(f"/runs/{run_id}")
    await visitor.sees("What went wrong")
    await visitor.check_accessibility()
    await visitor.page.get_by_role("button", name="Stop this run").click()
    await visitor.page.get_by_role("button", name="Stop it").click()
    await expect(visitor.page.locator(".fed-card .fed-stopped").first).to_have_text("stopped", timeout=PATIENCE_MS)
    assert (await site.ask(f"/runs/{run_id}"))["outcome"] == "stopped"


async def test_an_unreachable_broker_and_a_refusal_are_shown(site: Site, visitor: Visitor, broker: Mosquitto) -> None:
    await site.start_manager()
    visitor.url = site.manager_url
    await site.start_run(num_rounds=1, min_clients=2)
    await open_task(site, visitor)
    await visitor.page.get_by_role("button", name="Start").click()
    await visitor.sees("has an active run")
    await broker.kill()
    await visitor.sees("No broker at")
    await visitor.check_accessibility()


async def test_a_page_that_is_open_comes_back_when_its_manager_is_killed_and_started_again(
    site: Site, visitor: Visitor
) -> None:
    manager = await site.start_manager()
    visitor.url = site.manager_url
    await site.start_clients(1)
    await visitor.open()
    await visitor.sees_count("Online", 1)
    visitor.expects(*AWAY)
    manager.process.kill()
    await manager.wait()
    await visitor.sees("Connection lost")
    await site.start_manager(http=site.manager_url.removeprefix("http://"))
    await site.start_client("02:00:00:00:02:01")
    await visitor.sees_count("Online", 2)


async def test_a_standby_page_shows_that_it_waits_and_becomes_the_fleet_page(site: Site, visitor: Visitor) -> None:
    leader = await site.start_manager()
    standby = await site.launch_manager(site.write_tasks())
    visitor.url = (await standby.until_printed(r"waits for the lead, answers at (\S+)")).group(1)
    visitor.expects(*AWAY, "503")
    await visitor.page.goto(visitor.url)
    await visitor.sees("this manager is on standby")
    await leader.end(signal.SIGKILL)
    await visitor.sees("No clients yet")
    await visitor.open()


async def test_a_browser_signs_in_with_the_token_and_foreign_pages_stay_out(site: Site, visitor: Visitor) -> None:
    await site.start_manager(manager_token=TOKEN)
    visitor.url = site.manager_url
    visitor.expects("401")
    await visitor.page.goto(site.manager_url)
    await visitor.check_accessibility()
    await visitor.page.get_by_label("Token of the manager").fill("wrong")
    await visitor.page.get_by_role("button", name="Sign in").click()
    await visitor.sees("That is not its token")
    await visitor.page.get_by_label("Token of the manager").fill(TOKEN)
    await visitor.page.get_by_role("button", name="Sign in").click()
    await visitor.sees("No clients yet")
    async with httpx.AsyncClient(base_url=site.manager_url, trust_env=False, timeout=TIMEOUT_S) as stranger:
        assert (await stranger.get("/api/v1/runs")).status_code == 401
        assert (await stranger.get("/")).status_code == 401
        (cookie,) = await visitor.page.context.cookies()
        assert TOKEN not in cookie["value"]
        known = {"Cookie": f"{cookie['name']}={cookie['value']}"}
        assert (await stranger.get("/api/v1/runs", headers=known)).status_code == 200
        foreign = {**known, "Origin": "https://example.org"}
        assert (await stranger.post("/api/v1/runs", headers=foreign, json={})).status_code == 403
