"""Tasks: start a run of one, compare its runs."""

from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import zip_longest
from typing import Any

from nicegui import ui
from pydantic import ValidationError

from fedops_mqtt.core.run import ACCURACY, LOSS, measure
from fedops_mqtt.dashboard import charts
from fedops_mqtt.dashboard.parts import (
    cells,
    chip,
    clear_section,
    draw_chart,
    facts,
    hint,
    is_confirmed,
    section,
    set_chart,
    stop_button,
    table,
)
from fedops_mqtt.dashboard.texts import Label, clock, duration, number, readable, run_label
from fedops_mqtt.dashboard.view import PageView, subscription
from fedops_mqtt.manager.api.app_models import AppRecord, RollbackRequest
from fedops_mqtt.manager.api.models import RunRequest, RunSummary, TaskRecord
from fedops_mqtt.manager.errors import TasksFileError
from fedops_mqtt.manager.events import ChangeTopic
from fedops_mqtt.protocol.wire import first_problem
from fedops_mqtt.runtime.key_values import parse_pairs

REFRESH_S = 1.0
NUM_RUNS = 20
_CHOOSE = "Clients (none chosen: all that are idle)"
NUM_COMPARED = 6
_TASKS_FILE = """[tasks.digits]
module = "fedops_mqtt.demo.server"
num_rounds = 5
min_clients = 3"""


def build_list(view: PageView) -> Callable[[], Awaitable[None]]:
    """Return the function of the list of tasks."""

    async def tasks() -> None:
        with view.frame("Tasks", here="/tasks"):
            await TaskList(view).draw()

    return tasks


class TaskList:
    """One visitor's page of all tasks."""

    def __init__(self, view: PageView) -> None:
        self._view = view
        self._drawn: Any = None

    async def draw(self) -> None:
        """Draw the page and update it while it is open."""
        self._body = ui.element("div")
        await self._refresh()
        ui.timer(REFRESH_S, self._refresh)

    async def _refresh(self) -> None:
        found: list[TaskRecord] | str
        try:
            found = (await self._view.api.list_tasks()).items
        except TasksFileError as error:
            found = str(error)
        if found != self._drawn:
            self._drawn = found
            self._body.clear()
            with self._body:
                self._draw_all(found)

    def _draw_all(self, tasks: list[TaskRecord] | str) -> None:
        path = self._view.manager.tasks_file
        if isinstance(tasks, str):
            hint(tasks)
            return
        if not tasks:
            text = f"No task in {path}. Add one, for example:" if path else "Start the manager with --tasks tasks.toml:"
            hint(text, _TASKS_FILE)
            return
        with ui.element("div").classes("fed-columns"):
            for task in tasks:
                _draw_task(task)


def _draw_task(task: TaskRecord) -> None:
    with section(task.task_id):
        if task.active_run:
            ui.link(f"active: {task.active_run}", f"/runs/{task.active_run}")
        facts([("Clients online", task.num_clients), ("Rounds", task.num_rounds), ("Needs", task.min_clients)])
        _draw_app(task)
        ui.link("Start a run, compare its runs", f"/tasks/{task.task_id}")


def _draw_app(task: TaskRecord) -> None:
    if task.app_digest:
        with ui.element("div").classes("fed-row"):
            ui.label(f"App {readable(task.app_version)}").classes("fed-soft")
            ui.link(task.app_digest[:12], f"/api/v1/apps/{task.app_digest}")


def build(view: PageView) -> Callable[[str], Awaitable[None]]:
    """Return the function of one task's page."""

    async def task(task_id: str) -> None:
        with view.frame(task_id, here="/tasks"):
            tasks = (await view.api.list_tasks()).items
            known = next((each for each in tasks if each.task_id == task_id), None)
            if known is None:
                hint(f"Task {task_id!r} is not in the manager's tasks file. Add it:", f"[tasks.{task_id}]\n…")
            await TaskDetails(view, task_id, known).draw()

    return task


class TaskDetails:
    """One visitor's page of a task."""

    def __init__(self, view: PageView, task_id: str, task: TaskRecord | None) -> None:
        self._view = view
        self._task_id = task_id
        self._task = task
        self._drawn: list[RunSummary] | None = None

    async def draw(self) -> None:
        """Draw the page and update it while it is open."""
        self._changes = subscription(self._view)
        if self._task is not None and self._task.is_launchable:
            with section("Start a run"):
                _draw_app(self._task)
                self._draw_form(self._task)
        elif self._task is not None:
            publish = f"fedops-mqtt app publish FOLDER --task {self._task_id}"
            hint("Runs of this task begin when its FL server announces itself, or with a published app:", publish)
        with ui.element("div").classes("fed-columns") as self._compared:
            self._charts = {
                ending: draw_chart(f"{ending.capitalize()} of its last runs") for ending in (ACCURACY, LOSS)
            }
        self._runs = section("Runs")
        self._dialogs = ui.element("div")  # outlives what is drawn again around the button
        self._apps = AppVersions(self._view, self._task_id, self._dialogs)
        await self._refresh()
        ui.timer(REFRESH_S, self._update)

    def _draw_form(self, task: TaskRecord) -> None:
        with ui.element("div").classes("fed-row"):
            self._rounds = ui.number("Rounds", value=task.num_rounds, min=1, precision=0).props("dense outlined")
            self._min = ui.number("Needs at least", value=task.min_clients, min=1, precision=0).props("dense outlined")
            self._chosen = ui.select(self._choices(), multiple=True, with_input=True, label=_CHOOSE)
            self._chosen.props("dense outlined use-chips options-dense").style("min-width:min(100%, 20rem)")
            self._settings = ui.input("Settings of this run", placeholder="lr=0.1 local-epochs=2")
            self._settings.props("dense outlined").style("min-width:min(100%, 16rem)")
            self._button = ui.button("Start", color=None, on_click=self._start).props("unelevated no-caps")
            self._button.classes("fed-primary")
        self._idle = ui.label().classes("fed-soft")
        self._count_idle()

    def _choices(self) -> dict[str, str]:
        rows = self._view.rows.of_task(self._task_id)
        return {row["mac"]: row["name"] for row in rows if row["status"] != Label.OFFLINE}

    def _count_idle(self) -> None:
        by_status = Counter(row["status"] for row in self._view.rows.of_task(self._task_id))
        known = by_status.total()
        here = known - by_status[Label.OFFLINE]
        idle = here - by_status[Label.TRAINING]
        self._idle.set_text(f"{idle} of {here} clients that are online are idle; {known} are known.")

    async def _start(self) -> None:
        self._button.props("loading")
        try:
            request = RunRequest(
                task_id=self._task_id,
                num_rounds=int(self._rounds.value) if self._rounds.value else None,
                min_clients=int(self._min.value) if self._min.value else None,
                clients=self._chosen.value or None,
                run_config=parse_pairs(self._settings.value or ""),
            )
            async with self._view.refusals_shown():
                run = await self._view.api.start_run(request)
                ui.navigate.to(f"/runs/{run.run_id}")
        except ValidationError as error:
            ui.notify(first_problem(error, "run"), type="negative")
        except ValueError as error:
            ui.notify(str(error), type="negative")
        finally:
            self._button.props(remove="loading")

    async def _update(self) -> None:
        kinds = {each.kind for each in self._changes.take() if each.is_about(self._task_id, None)}
        if kinds & {ChangeTopic.CLIENT, ChangeTopic.FORGOTTEN} and self._task is not None and self._task.is_launchable:
            self._count_idle()
            if (choices := self._choices()) != self._chosen.options:
                self._chosen.set_options(choices)
        if kinds & {ChangeTopic.RUN, ChangeTopic.LAGGED}:
            await self._refresh()
        elif ChangeTopic.APP in kinds:
            await self._apps.refresh()

    async def _refresh(self) -> None:
        runs = (await self._view.api.list_runs(task_id=self._task_id, limit=NUM_RUNS)).items
        self._compared.set_visibility(bool(runs))
        history = self._view.api.history
        rounds = {run.run_id: (await history.list_rounds(run.run_id)).items for run in runs[:NUM_COMPARED]}
        for ending, chart in self._charts.items():
            series = charts.runs_compared(rounds, ending)
            set_chart(chart, charts.lines(series, is_share=ending == ACCURACY))
        if runs != self._drawn:
            self._drawn = runs
            self._draw_runs(runs)
        await self._apps.refresh()

    def _draw_runs(self, runs: list[RunSummary]) -> None:
        clear_section(self._runs)
        with self._runs:
            if not runs:
                ui.label("No runs yet: start one above, or with")
                ui.label(f"fedops-mqtt start {self._task_id}").classes("fed-code")
                return
            active = next((run for run in runs if run.outcome is None), None)
            if active is not None:
                with ui.element("div").classes("fed-row"):
                    stop_button(self._view, active.run_id, self._dialogs).set_enabled(not active.is_stopping)
            with table("Run", "Outcome", "App", "Accuracy", "Loss", "Rounds", "Clients", "Took", "Began (UTC)"):
                for run, colour in zip_longest(runs, charts.COLOURS[:NUM_COMPARED]):
                    if run is not None:
                        _draw_run(run, colour)


class AppVersions:
    """The published versions of a task's app, newest first; any of them can be made current."""

    def __init__(self, view: PageView, task_id: str, dialogs: ui.element) -> None:
        self._view = view
        self._task_id = task_id
        self._dialogs = dialogs
        self._drawn: list[AppRecord] | None = None
        self._section = section("App versions")

    async def refresh(self) -> None:
        """Draw the versions again if they have changed; hidden where there is none."""
        apps = (await self._view.api.apps.list_apps(self._task_id)).items
        self._section.set_visibility(bool(apps))
        if apps != self._drawn:
            self._drawn = apps
            clear_section(self._section)
            with self._section, table("Version", "Digest", "Published (UTC)", "Size", "Signed by", ""):
                for app in apps:
                    self._draw(app)

    def _draw(self, app: AppRecord) -> None:
        with ui.element("tr"):
            cells(app.version)
            with ui.element("td"):
                ui.link(app.digest[:12], f"/api/v1/apps/{app.digest}")
            cells(clock(app.published_at), f"{app.size:,} B", app.key_id or "nobody")
            with ui.element("td"):
                if app.is_current:
                    ui.label("current")
                else:
                    button = ui.button("Make current", color=None, on_click=lambda: self._roll_back(app))
                    button.props("flat no-caps dense")

    async def _roll_back(self, app: AppRecord) -> None:
        question = f"Make version {app.version} current? The next run trains with it; a run that goes on keeps its own."
        if await is_confirmed(self._dialogs, question, yes="Make it current", no="Leave it"):
            async with self._view.refusals_shown():
                await self._view.api.apps.roll_back(self._task_id, RollbackRequest(version=app.digest))
                ui.notify(f"Version {app.version} is current.")
            await self.refresh()


def _draw_run(run: RunSummary, colour: str | None) -> None:
    """Draw a run's row; the colour is that of its line in the charts."""
    took = duration((run.ended_at - run.created_at).total_seconds()) if run.ended_at else "–"
    with ui.element("tr"):
        with ui.element("td"), ui.element("div"):
            if colour:
                ui.element("span").classes("fed-swatch").style(f"--swatch:{colour}")
            ui.link(run.run_id, f"/runs/{run.run_id}")
        with ui.element("td"):
            chip(run_label(run))
        measures = (number(measure(run.metrics, ending)) for ending in (ACCURACY, LOSS))
        rounds, num_clients = f"{run.round}/{run.num_rounds}", sum(run.clients_by_status.values())
        cells(run.app_version or "–", *measures, rounds, num_clients, took, clock(run.created_at))
