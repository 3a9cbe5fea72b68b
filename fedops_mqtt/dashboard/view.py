"""What every page works with: the API, the fleet's rows, and the frame around the pages."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from nicegui import ui

from fedops_mqtt.bus import BusError
from fedops_mqtt.dashboard.rows import FleetRows
from fedops_mqtt.dashboard.style import CSS
from fedops_mqtt.manager.api.app import Api
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.errors import ManagerError
from fedops_mqtt.manager.events import Subscription
from fedops_mqtt.protocol import IdentityError

TICK_S = 0.4
"""Between two looks at what is new: below the second in which a change has to be on the screen."""

REFUSALS = (ManagerError, BusError, IdentityError)
"""What the manager may say no with; its words are for people."""

_NAVIGATION = (("Fleet", "/"), ("Tasks", "/tasks"))
_REMEMBERED = "localStorage.getItem('fedops-dark')"


class PageView:
    """One for all pages and visitors."""

    def __init__(self, api: Api, desk: ManagerContext, rows: FleetRows) -> None:
        self.api = api
        self.desk = desk
        self.rows = rows

    @contextmanager
    def frame(self, title: str, here: str = "") -> Iterator[None]:
        """Draw header and banner around a page."""
        ui.add_css(CSS)
        dark = ui.dark_mode(None)
        with ui.header(elevated=False).classes("fed-header"):
            ui.link("fedops-mqtt", "/").classes("fed-brand")
            with ui.element("nav").props('aria-label="Main"').classes("fed-nav"):
                for name, path in _NAVIGATION:
                    link = ui.link(name, path)
                    if path == here:
                        link.props('aria-current="page"')
            ui.space()
            switch = ui.button(icon="contrast", color=None).props('flat round dense aria-label="Dark or light"')
            switch.on_click(lambda: _toggle(dark))
        self._banner()
        with ui.element("div").classes("fed-main"):
            ui.label(title).classes("fed-title").props('role="heading" aria-level="1"')
            yield
        ui.timer(0.05, lambda: _recall(dark), once=True)

    def _banner(self) -> None:
        broker = self.desk.connection.broker
        with ui.element("div").classes("fed-banner").props('role="alert"') as banner:
            ui.icon("cloud_off")
            with ui.element("div").classes("fed-row"):
                ui.label(f"No broker at {broker}: what you see is how it was. Trying again all the time; start it with")
                ui.label("fedops-mqtt broker").classes("fed-code")

        with ui.element("div").classes("fed-banner").props('role="alert"') as losses:
            ui.icon("warning")
            problem = ui.label()

        def look() -> None:
            banner.set_visibility(not self.desk.connection.is_connected)
            problem.set_text(self.desk.watch.losses.problem or "")
            losses.set_visibility(bool(problem.text))

        look()
        ui.timer(1.0, look)

    @asynccontextmanager
    async def refusals_shown(self) -> AsyncIterator[None]:
        """Show what the manager says no with."""
        try:
            yield
        except REFUSALS as error:
            ui.notify(str(error), type="negative", multi_line=True, timeout=10_000, close_button="OK")


def subscription(view: PageView) -> Subscription:
    """Return news for this visitor, until the page is closed."""
    life = view.desk.events.subscribed()
    opened = life.__enter__()
    ui.context.client.on_delete(lambda: life.__exit__(None, None, None))
    return opened


async def _toggle(dark: ui.dark_mode) -> None:
    is_dark = await ui.run_javascript("document.body.classList.contains('body--dark')")
    dark.value = not is_dark
    ui.run_javascript(f"localStorage.setItem('fedops-dark', '{'no' if is_dark else 'yes'}')")


async def _recall(dark: ui.dark_mode) -> None:
    chosen = await ui.run_javascript(_REMEMBERED)
    if chosen in ("yes", "no"):
        dark.value = chosen == "yes"
