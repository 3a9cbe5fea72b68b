"""What all pages share: the API, the fleet's rows, and the frame around a page."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nicegui import ui

from fedops_mqtt.bus import BusError
from fedops_mqtt.dashboard.fleet_rows import FleetRows
from fedops_mqtt.manager.api.app import Api
from fedops_mqtt.manager.errors import ManagerError
from fedops_mqtt.manager.events import Subscription
from fedops_mqtt.protocol import IdentityError

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")

TICK_S = 0.4
"""Between two updates of the fleet's table: a change has to be on the screen within a second."""

REFUSALS = (ManagerError, BusError, IdentityError)
"""The manager's refusals; their text is for people."""

_NAVIGATION = (("Fleet", "/"), ("Tasks", "/tasks"))
_REMEMBERED = "localStorage.getItem('fedops-dark')"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerFacts:
    """What the pages show of their manager that no record of its API has."""

    broker: str
    """The broker's URL for a device, without a password."""
    tasks_file: Path | None
    has_sites: bool
    now: Callable[[], float]
    """The manager's clock, s."""
    subscribed: Callable[[], AbstractContextManager[Subscription]]
    """Collects the changes of every kind while its block runs."""


class PageView:
    """One for all pages and visitors."""

    def __init__(self, api: Api, rows: FleetRows, manager: ManagerFacts) -> None:
        self._navigation = (*_NAVIGATION, ("Sites", "/sites")) if manager.has_sites else _NAVIGATION
        self.api = api
        self.rows = rows
        self.manager = manager

    @contextmanager
    def frame(self, title: str, here: str = "") -> Iterator[None]:
        """Draw header and banner around a page."""
        ui.add_css(CSS)
        dark = ui.dark_mode(None)
        with ui.header(elevated=False).classes("fed-header"):
            ui.link("fedops-mqtt", "/").classes("fed-brand")
            with ui.element("nav").props('aria-label="Main"').classes("fed-nav"):
                for name, path in self._navigation:
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
        broker = self.api.current_health().broker
        with ui.element("div").classes("fed-banner").props('role="alert"') as banner:
            ui.icon("cloud_off")
            with ui.element("div").classes("fed-row"):
                ui.label(f"No broker at {broker}: what you see is how it was. Trying again all the time; start it with")
                ui.label("fedops-mqtt broker").classes("fed-code")

        with ui.element("div").classes("fed-banner").props('role="alert"') as losses:
            ui.icon("warning")
            problem = ui.label()

        def look() -> None:
            health = self.api.current_health()
            banner.set_visibility(health.status == "no-broker")
            problem.set_text(health.problem or "")
            losses.set_visibility(bool(problem.text))

        look()
        ui.timer(1.0, look)

    @asynccontextmanager
    async def refusals_shown(self) -> AsyncIterator[None]:
        """Show a refusal of the manager as a notification."""
        try:
            yield
        except REFUSALS as error:
            ui.notify(str(error), type="negative", multi_line=True, timeout=10_000, close_button="OK")


def subscription(view: PageView) -> Subscription:
    """Return a subscription for this visitor, until the page is closed."""
    life = view.manager.subscribed()
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
