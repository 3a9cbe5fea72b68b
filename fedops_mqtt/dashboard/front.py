"""The page on the manager's application: NiceGUI mounted below the API, everything it loads from this machine.

NiceGUI is one per process, and so is a manager that leads.
"""

import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fedops_mqtt.bus import without_password
from fedops_mqtt.manager.api.app import Api
from fedops_mqtt.manager.api.http import access_rules
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.sites import AsyncSitesClient
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.site_addresses import SiteAddress

COOKIE = "fedops_mqtt"
SIGN_IN = "/sign-in"
_MAX_FORM_BYTES = 4096

_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in - fedops-mqtt</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>body{font:16px system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;margin:1rem}
form{display:grid;gap:.8rem;max-width:22rem;width:100%%}input,button{font:inherit;padding:.6rem;border-radius:6px;
border:1px solid #888}button{background:#0b6b7a;color:#fff;border:0}p{margin:0}</style>
<main><form method="post"><h1>fedops-mqtt</h1><p>%s</p><label for="token">Token of the manager</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button><p>It is FEDOPS_MQTT_MANAGER_TOKEN where the manager was started.</p></form></main></html>"""


class SessionCookieMiddleware:
    """ASGI middleware around the access control: accepts a cookie for the token; without a token it does nothing."""

    def __init__(self, app: ASGIApp, *, token: str | None, is_tls: bool) -> None:
        self._app = app
        self._token = token
        self._is_tls = is_tls
        self._pass = hmac.new((token or "").encode(), b"fedops-mqtt page", sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a signed-in browser's request on as if it had the token."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._token is None or b"authorization" in headers:
            await self._app(scope, receive, send)
        elif scope["path"] == SIGN_IN and scope["type"] == "http":
            await (await self._sign_in(scope, receive))(scope, receive, send)
        elif hmac.compare_digest(HTTPConnection(scope).cookies.get(COOKIE, "").encode(), self._pass.encode()):
            bearer = (b"authorization", f"Bearer {self._token}".encode())
            await self._app({**scope, "headers": [*scope["headers"], bearer]}, receive, send)
        elif scope["type"] == "http" and "text/html" in headers.get(b"accept", ""):
            await RedirectResponse(SIGN_IN, 303)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _sign_in(self, scope: Scope, receive: Receive) -> Response:
        if scope["method"] != "POST":
            return HTMLResponse(_FORM % "This manager requires its token.")
        given = parse_qs((await _read(receive)).decode("latin-1")).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), (self._token or "").encode()):
            return HTMLResponse(_FORM % "That is not its token.", 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self._pass, httponly=True, samesite="strict", secure=self._is_tls)
        return answer


async def _read(receive: Receive) -> bytes:
    body, is_more = b"", True
    while is_more and len(body) <= _MAX_FORM_BYTES:
        part = await receive()
        body += part.get("body", b"")
        is_more = part.get("more_body", False)
    return body[:_MAX_FORM_BYTES]


ANSWER_S = 5.0
"""A site that has not answered within this is shown as such."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Of one answer of a site; 1000 clients are 1 MB. This manager's other work waits while it is parsed."""
BUILD_S = 20.0
"""A page may take this long to be built; with thousands of clients on a busy machine it is more than NiceGUI's 3 s."""

_NICEGUI: dict[str, Any] = {
    "title": "fedops-mqtt", "favicon": "🛰", "dark": None, "language": "en-US", "show_welcome_message": False,
    "binding_refresh_interval": None, "reconnect_timeout": 10.0,
    "tailwind": False,  # 260 kB that look at every change of the page; our style sheet is our own
}  # fmt: skip


@asynccontextmanager
async def page(app: FastAPI, api: Api, context: ManagerContext) -> AsyncIterator[Callable[[ASGIApp], ASGIApp]]:
    """Serve the page while the block runs; yields what wraps the access control."""
    from nicegui import ui

    from fedops_mqtt.dashboard import client_page, fleet_page, run_page, sites_page, task_page
    from fedops_mqtt.dashboard.fleet_rows import LOAD_TOPICS, FleetRows
    from fedops_mqtt.dashboard.view import ManagerFacts, PageView

    app.add_api_route("/api/{rest:path}", _nothing_there, include_in_schema=False)
    async with AsyncExitStack() as stack:
        changes = stack.enter_context(context.events.subscribed(*LOAD_TOPICS))
        facts = ManagerFacts(
            broker=without_password(context.settings.broker),
            tasks_file=context.tasks.path,
            has_sites=bool(context.settings.sites),
            now=context.clock.now,
            subscribed=context.events.subscribed,
        )
        view = PageView(api, FleetRows(context.bus_reader.fleet, changes), facts)
        for path, title, build in (
            ("/", "Fleet", fleet_page.build),
            ("/tasks", "Tasks", task_page.build_list),
            ("/tasks/{task_id}", "Task", task_page.build),
            ("/runs/{run_id}", "Run", run_page.build),
            ("/clients/{task_id}/{client_mac}", "Client", client_page.build),
        ):
            ui.page(path, title=f"{title} · fedops-mqtt", response_timeout=BUILD_S)(build(view))
        if addresses := context.settings.site_addresses:
            sites = await stack.enter_async_context(_site_managers(addresses, context.settings.sites_ca_file))
            reader = sites_page.SiteReader.of(addresses, sites)
            await stack.enter_async_context(alongside(reader.follow(), name="sites"))
            ui.page("/sites", title="Sites · fedops-mqtt", response_timeout=BUILD_S)(sites_page.build(view, reader))
        ui.run_with(app, **_NICEGUI)
        rules = access_rules(context.settings)
        async with app.router.lifespan_context(app), alongside(view.rows.follow(), name="page"):
            yield lambda wrapped: SessionCookieMiddleware(wrapped, token=rules.token, is_tls=rules.is_tls)


def _site_managers(addresses: Sequence[SiteAddress], ca_file: Path | None) -> AsyncSitesClient:
    try:
        return AsyncSitesClient(addresses, ca_file=ca_file, timeout_s=ANSWER_S, max_json_bytes=MAX_ANSWER_BYTES)
    except OSError as error:
        raise OSError(error.errno, f"sites_ca_file: {error.strerror or error}", str(ca_file)) from error


def _nothing_there(rest: str) -> None:
    raise HTTPException(404, f"the API has no /api/{rest}; see /api/v1/openapi.json")
