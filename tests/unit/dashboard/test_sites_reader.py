"""The reader of several sites: whatever one site answers is that site's problem, and ends nothing."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from http_stand_in import Handler, serving

from fedops_mqtt.dashboard import sites_page
from fedops_mqtt.dashboard.sites_page import SiteReader, SiteState
from fedops_mqtt.manager.client import AsyncManagerClient
from fedops_mqtt.manager.sites import AsyncSitesClient
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.site_addresses import parse_sites

HEALTH = {"status": "ok", "term": 1, "broker": "b", "problem": None, "num_clients": 0, "num_active_runs": 0}
PAGE: dict[str, Any] = {"items": [], "total": 0}
RUN = {
    "run_id": "r", "task_id": "t", "status": "running", "outcome": None, "reason": None, "ended_at": None,
    "num_rounds": 1, "min_clients": 1, "join": "open", "app_digest": None, "app_version": None, "run_config": {},
    "is_adopted": False, "is_stopping": False, "launch": 1, "server_ip": None, "round": 0, "gl_model": 0, "metrics": {},
    "model_path": None, "clients_by_status": {},
}  # fmt: skip


@contextmanager
def a_site(**answers: Any) -> Iterator[str]:
    """A manager's API that answers what it is given; bytes as they are."""
    given = {"health": HEALTH, "tasks": PAGE, "runs": PAGE, "clients": PAGE, **answers}

    class Site(Handler):
        def do_GET(self) -> None:
            answer = given[self.path.partition("?")[0].rpartition("/")[2]]
            self.give(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    with serving(Site) as address:
        yield f"http://{address}"


async def read(*urls: str) -> dict[str, SiteState]:
    """Return what a reader has of these sites once each has answered twice."""
    addresses = parse_sites([f"s{number}={url}" for number, url in enumerate(urls)])
    async with AsyncSitesClient(addresses) as sites:
        reader = SiteReader.of(addresses, sites)
        async with alongside(reader.follow(), name="sites"), asyncio.timeout(300):
            for _ in range(2):
                before = dict(reader.states)
                reader.look()
                while any(reader.states[name] is state for name, state in before.items()):  # noqa: ASYNC110 - a page polls, too
                    await asyncio.sleep(0.01)
            return reader.states


@pytest.mark.parametrize(
    "answers",
    [
        {"health": b"[" * 200_000},
        {"runs": b"[" * 200_000},
        {"tasks": b"\xff"},
        {"runs": {"items": [{**RUN, "created_at": "0001-01-01T00:00:00+23:59"}], "total": 1}},
    ],
)
async def test_what_a_site_answers_is_its_own_problem(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites_page, "PAUSE_S", 0.0)
    with a_site(**answers) as odd, a_site() as good:
        states = await read(odd, good)
    assert states["s0"].problem is not None
    assert (states["s1"].problem, states["s1"].health is not None) == (None, True)


async def test_an_unexpected_error_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: AsyncManagerClient) -> Any:
        raise RecursionError("of a library")

    monkeypatch.setattr(sites_page, "PAUSE_S", 0.0)
    monkeypatch.setattr(AsyncManagerClient, "health", fail)
    with a_site() as odd:
        states = await read(odd)
    assert states["s0"].problem == "its answer cannot be used (RecursionError)"
    assert caplog.text.count("a site's answer cannot be used") == 1


async def test_what_a_site_claims_does_not_make_the_reader_ask_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites_page, "PAUSE_S", 0.0)
    runs = [{**RUN, "created_at": at} for at in ("2026-01-01T00:00:00", "2026-01-01T00:00:00Z")] * 50
    with a_site(runs={"items": runs, "total": 10**9}) as claims:
        state = (await read(claims))["s0"]
    assert (state.problem, len(state.runs)) == (None, sites_page.MAX_RUNS)
