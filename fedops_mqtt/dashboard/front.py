"""The page on the manager's application: NiceGUI mounted below the API, everything it loads from this machine.

NiceGUI is one per process, and so is a manager that leads.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from fedops_mqtt.dashboard.sign_in import SessionCookieMiddleware
from fedops_mqtt.manager.api.app import Api
from fedops_mqtt.manager.api.http import access_rules
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.runtime.background import alongside

BUILD_S = 20.0
"""A page may take this long to be built; with thousands of clients on a busy machine it is more than NiceGUI's 3 s."""

_NICEGUI: dict[str, Any] = {
    "title": "fedops-mqtt", "favicon": "🛰", "dark": None, "language": "en-US", "show_welcome_message": False,
    "binding_refresh_interval": None, "reconnect_timeout": 10.0,
    "tailwind": False,  # 260 kB that look at every change of the page; our style sheet is our own
}  # fmt: skip


@asynccontextmanager
async def page(app: FastAPI, api: Api, desk: ManagerContext) -> AsyncIterator[Callable[[ASGIApp], ASGIApp]]:
    """Serve the page while the block runs; what is yielded goes around the door."""
    from nicegui import ui

    from fedops_mqtt.dashboard import client_page, fleet_page, run_page, task_page
    from fedops_mqtt.dashboard.rows import TOLD, FleetRows
    from fedops_mqtt.dashboard.view import PageView

    app.add_api_route("/api/{rest:path}", _nothing_there, include_in_schema=False)
    with desk.events.subscribed(*TOLD) as news:
        view = PageView(api, desk, FleetRows(desk.watch, news))
        for path, title, build in (
            ("/", "Fleet", fleet_page.build),
            ("/tasks", "Tasks", task_page.build_list),
            ("/tasks/{task_id}", "Task", task_page.build),
            ("/runs/{run_id}", "Run", run_page.build),
            ("/clients/{task_id}/{client_mac}", "Client", client_page.build),
        ):
            ui.page(path, title=f"{title} · fedops-mqtt", response_timeout=BUILD_S)(build(view))
        ui.run_with(app, **_NICEGUI)
        rules = access_rules(desk.settings)
        async with app.router.lifespan_context(app), alongside(view.rows.follow(), name="page"):
            yield lambda door: SessionCookieMiddleware(door, token=rules.token, is_tls=rules.is_tls)


def _nothing_there(rest: str) -> None:
    raise HTTPException(404, f"the API has no /api/{rest}; see /api/v1/openapi.json")
