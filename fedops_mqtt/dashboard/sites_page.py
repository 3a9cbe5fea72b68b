"""Several sites: how each one is, their newest runs, their clients. It only shows: to act, open the site's own page.

While a page is open each site is read every few seconds, apart from the others: one that does not answer or refuses
has a problem in the place of its rows, and delays no other.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

from nicegui import ui
from pydantic import ValidationError

from fedops_mqtt.core.run import ACCURACY, measure
from fedops_mqtt.dashboard.fleet_page import HEAD_PX, ROW_PX, client_columns, grid_options
from fedops_mqtt.dashboard.parts import cells, chip, clear_section, section, table
from fedops_mqtt.dashboard.texts import Row, clock, number, readable, row_of, run_label
from fedops_mqtt.dashboard.view import PageView
from fedops_mqtt.manager.api.models import ClientPage, ClientRecord, Health, RunPage, RunSummary, TaskPage, TaskRecord
from fedops_mqtt.manager.client import AsyncManagerClient, ManagerClientError, ManagerUrlError
from fedops_mqtt.manager.sites import AsyncSitesClient
from fedops_mqtt.runtime.site_addresses import SiteAddress

logger = logging.getLogger(__name__)

REFRESH_S = 1.0
NUM_RUNS = 40
PAUSE_S = 3.0
"""Between an answer of a site and the next question to it."""
MAX_CLIENTS = 1000
"""Clients of a site that are shown; its own page has all."""
MAX_RUNS = 20
MAX_TASKS = 1000

Page = TypeVar("Page", ClientPage, RunPage, TaskPage)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    """What is known of a site: the rows that it answered, or its problem; neither before the first answer."""

    name: str
    url: str
    """Of its manager that answered, or of the first one."""
    health: Health | None = None
    tasks: Sequence[TaskRecord] = ()
    runs: Sequence[RunSummary] = ()
    clients: Sequence[ClientRecord] = ()
    num_clients: int = 0
    """Known ones, also those that are not among `clients`."""
    problem: str | None = None


@dataclass(kw_only=True)
class SiteReader:
    """The states of all sites. `look` asks for fresh ones, `states` are those of now.

    It runs in the process of a leading manager: whatever a site answers is that site's problem, and ends nothing here.
    """

    sites: AsyncSitesClient
    states: dict[str, SiteState] = field(default_factory=dict)
    _wanted: Mapping[str, asyncio.Event] = field(default_factory=dict)

    @classmethod
    def of(cls, addresses: Sequence[SiteAddress], sites: AsyncSitesClient) -> "SiteReader":
        """Return a reader that has read no site yet."""
        states = {each.name: SiteState(name=each.name, url=each.urls[0]) for each in addresses}
        return cls(sites=sites, states=states, _wanted={name: asyncio.Event() for name in states})

    def look(self) -> None:
        """Request a fresh state of each site; it is in `states` when the site has answered."""
        for wanted in self._wanted.values():
            wanted.set()

    async def follow(self) -> None:
        """Answer `look`, for ever."""
        async with asyncio.TaskGroup() as group:
            for name in self._wanted:
                group.create_task(self._follow(name), name=f"site {name}")

    async def _follow(self, name: str) -> None:
        while True:
            await self._wanted[name].wait()
            self._wanted[name].clear()
            self.states[name] = await self._read(self.states[name])
            await asyncio.sleep(PAUSE_S)

    async def _read(self, before: SiteState) -> SiteState:
        try:
            return await _read_site(before.name, await self.sites.at(before.name))
        except ManagerClientError as error:
            problem = str(error)
        except Exception as error:  # of a site's answer, for which nobody here is to blame
            problem = f"its answer cannot be used ({type(error).__name__})"
            if before.problem != problem:
                logger.warning("a site's answer cannot be used", extra={"site": before.name}, exc_info=error)
        self.sites.forget_leader(before.name)
        return SiteState(name=before.name, url=before.url, problem=problem)


async def _read_page(manager: AsyncManagerClient, path: str, form: type[Page], limit: int) -> Page:
    try:
        return form.model_validate(await manager.request("GET", path, limit=limit))
    except ValidationError as error:
        raise ManagerUrlError(manager.url, f"it answers in another form: {error.errors()[0]['msg']}") from error


async def _read_site(name: str, manager: AsyncManagerClient) -> SiteState:
    health = await manager.health()
    tasks = await _read_page(manager, "/tasks", TaskPage, MAX_TASKS)
    runs = await _read_page(manager, "/runs", RunPage, MAX_RUNS)
    clients = await _read_page(manager, "/clients", ClientPage, MAX_CLIENTS)
    for run in runs.items:
        clock(run.created_at)  # raises for a time that no page can show; and so does the next
    for client in clients.items:
        row_of(client)
    return SiteState(
        name=name,
        url=manager.url,
        health=health,
        tasks=tasks.items[:MAX_TASKS],
        runs=runs.items[:MAX_RUNS],
        clients=clients.items[:MAX_CLIENTS],
        num_clients=clients.total,
    )


def build(view: PageView, reader: SiteReader) -> Callable[[], Awaitable[None]]:
    """Return the page's function."""

    async def sites() -> None:
        with view.frame("Sites", here="/sites"):
            await SitesTable(reader).draw()

    return sites


class SitesTable:
    """One visitor's page of all sites."""

    def __init__(self, reader: SiteReader) -> None:
        self._reader = reader
        self._drawn: dict[str, SiteState] = {}
        self._shown: Mapping[str, Row] = {}

    async def draw(self) -> None:
        """Draw the page and update it while it is open."""
        self._sites = section("Sites")
        self._runs = section("Newest runs")
        with section("Clients"):
            self._more = ui.label().classes("fed-soft")
            with ui.element("div").classes("fed-box") as self._box:
                self._grid = ui.aggrid(grid_options(client_columns(has_sites=True)), auto_size_columns=False)
                self._grid.classes("fed-grid").props('aria-label="Clients of all sites"')
        self._draw_states()
        await ui.context.client.connected(timeout=30)
        self._update()
        ui.timer(REFRESH_S, self._update)

    def _update(self) -> None:
        self._reader.look()
        if self._reader.states != self._drawn:
            self._draw_states()
            self._update_clients()

    def _draw_states(self) -> None:
        self._drawn = dict(self._reader.states)
        clear_section(self._sites)
        with self._sites, table("Site", "Status", "Clients", "Tasks", "Active runs", "Problem"):
            for state in self._drawn.values():
                _draw_site(state)
        clear_section(self._runs)
        runs = [(state, run) for state in self._drawn.values() for run in state.runs]
        runs.sort(key=lambda each: clock(each[1].created_at), reverse=True)  # times without a zone compare with none
        with self._runs:
            if not runs:
                ui.label("No runs yet.").classes("fed-soft")
                return
            with table("Site", "Run", "Task", "Outcome", "Accuracy", "Rounds", "Began (UTC)"):
                for state, run in runs[:NUM_RUNS]:
                    _draw_run(state, run)

    def _update_clients(self) -> None:
        known, now = self._shown, dict(_client_rows(self._drawn.values()))
        self._shown = now
        changes = {
            "add": [row for key, row in now.items() if key not in known],
            "update": [row for key, row in now.items() if key in known and known[key] != row],
            "remove": [{"id": key} for key in known if key not in now],
        }
        if any(changes.values()):
            self._grid.run_grid_method("applyTransaction", changes)
        self._box.style(f"height:{HEAD_PX + ROW_PX * len(now)}px")
        left_out = [each for each in self._drawn.values() if each.num_clients > len(each.clients)]
        names = ", ".join(f"{each.name} ({len(each.clients)} of {each.num_clients})" for each in left_out)
        self._more.set_text(f"Not all are shown of {names}: the site's own page has all." if left_out else "")
        self._more.set_visibility(bool(left_out))


def _draw_site(state: SiteState) -> None:
    health = state.health
    with ui.element("tr"):
        with ui.element("td"):
            ui.link(readable(state.name), state.url, new_tab=True)
        with ui.element("td"):
            chip(_label(state))
        if health is None:
            cells("–", "–", "–", words=state.problem or "–")
            return
        tasks = ", ".join(task.task_id for task in state.tasks) or "–"
        cells(
            f"{health.num_clients} of {state.num_clients}", tasks, health.num_active_runs, words=health.problem or "–"
        )


def _label(state: SiteState) -> str:
    if state.problem is not None:
        return "Offline"
    if state.health is None:
        return "Unconfirmed"
    return "Online" if state.health.status == "ok" else "No broker"


def _draw_run(state: SiteState, run: RunSummary) -> None:
    with ui.element("tr"):
        cells(state.name)
        with ui.element("td"):
            ui.link(readable(run.run_id), f"{state.url}/runs/{quote(run.run_id, safe='')}", new_tab=True)
        cells(run.task_id)
        with ui.element("td"):
            chip(run_label(run))
        accuracy = number(measure(run.metrics, ACCURACY))
        cells(accuracy, f"{run.round}/{run.num_rounds}", clock(run.created_at))


def _client_rows(states: Iterable[SiteState]) -> Iterable[tuple[str, Row]]:
    for state in states:
        for client in state.clients:
            row = row_of(client)
            row_id = f"{state.name}/{row['id']}"
            yield row_id, {**row, "id": row_id, "site": readable(state.name), "page": state.url}
