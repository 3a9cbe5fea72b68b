"""What every page works with: the API, the fleet's rows, and the frame around the pages."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from nicegui import ui

from fedops_mqtt.bus import BusError
from fedops_mqtt.dashboard.texts import FleetRows
from fedops_mqtt.manager.api.app import Api
from fedops_mqtt.manager.context import ManagerContext
from fedops_mqtt.manager.errors import ManagerError
from fedops_mqtt.manager.events import Subscription
from fedops_mqtt.protocol import IdentityError

CSS = """
:root { --ink:#1c2430; --soft:#55616f; --paper:#f4f6f8; --card:#fff; --line:#dce2e8; --accent:#0b6b7a;
  --green:#1b6e2d; --blue:#1458a6; --red:#b42318; --amber:#8a5300; --grey:#55616f; }
body.body--dark { --ink:#e6eaef; --soft:#a3afbc; --paper:#11161c; --card:#1a2129; --line:#2d3743; --accent:#5cc8d7;
  --green:#6fcf85; --blue:#78b4ff; --red:#ff8a80; --amber:#f2b95c; --grey:#a3afbc; }
body, body.body--dark { --q-primary:var(--accent) !important; background:var(--paper); color:var(--ink); }
.nicegui-content { padding:0; gap:0; }
.fed-header { background:var(--card) !important; color:var(--ink) !important; border-bottom:1px solid var(--line);
  display:flex; align-items:center; gap:1rem; padding:.4rem 1rem; }
.fed-brand { font-weight:700; color:var(--accent) !important; text-decoration:none; font-size:1.05rem; }
.fed-nav { display:flex; gap:.25rem; }
.fed-nav a { color:var(--ink); text-decoration:none; padding:.35rem .7rem; border-radius:6px; }
.fed-nav a[aria-current] { background:var(--paper); font-weight:600; }
.fed-nav a:hover { background:var(--paper); }
.fed-main { width:100%; max-width:1500px; margin:0 auto; padding:1rem; display:flex; flex-direction:column; gap:.9rem; }
.fed-title { font-size:1.35rem; font-weight:650; overflow-wrap:anywhere; line-height:1.3; }
.fed-heading { font-weight:600; font-size:1rem; }
.fed-card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:.9rem 1rem; min-width:0;
  display:flex; flex-direction:column; gap:.6rem; }
.fed-columns { display:grid; grid-template-columns:repeat(auto-fit, minmax(min(100%, 370px), 1fr)); gap:.9rem; }
.fed-row { display:flex; flex-wrap:wrap; gap:.6rem; align-items:center; }
.fed-soft { color:var(--soft); }
.fed-main a:not(.q-btn) { color:var(--accent); text-underline-offset:2px; }
.fed-counts { display:flex; flex-wrap:wrap; gap:.6rem; }
.fed-count { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:.55rem .9rem;
  min-width:6.2rem; text-align:left; cursor:pointer; color:var(--ink); font:inherit; }
.fed-number { display:block; font-size:1.5rem; line-height:1.2; font-variant-numeric:tabular-nums; }
.fed-count[aria-pressed=true] { outline:2px solid var(--accent); }
.fed-chip { display:inline-block; padding:.1rem .6rem; border-radius:99px; border:1px solid currentColor;
  font-size:.85rem; font-weight:600; white-space:nowrap;
  line-height:1.4; }
.fed-online, .fed-completed, .fed-finished { color:var(--green); }
.fed-training, .fed-running, .fed-triggered { color:var(--blue); }
.fed-offline, .fed-failed, .fed-lost, .fed-rejected { color:var(--red); }
.fed-unconfirmed, .fed-pending, .fed-starting, .fed-stopping, .fed-stopped, .fed-chosen { color:var(--amber); }
.fed-facts { display:flex; flex-wrap:wrap; gap:.5rem 1.6rem; margin:0; }
.fed-facts dt { font-size:.8rem; color:var(--soft); } .fed-facts dd { margin:0; overflow-wrap:anywhere; }
.fed-code { font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; font-size:.85rem; background:var(--paper);
  border:1px solid var(--line); border-radius:6px; padding:.2rem .5rem; overflow-wrap:anywhere; white-space:pre-wrap; }
.fed-pre { max-height:22rem; overflow:auto; }
.fed-hint { background:var(--card); border:1px dashed var(--line); border-radius:10px; padding:1.2rem; gap:.6rem; }
.fed-banner { background:var(--red); color:var(--paper); padding:.5rem 1rem; gap:.6rem; width:100%; display:flex;
  align-items:center; border-bottom:1px solid var(--paper); }
.fed-banner .fed-code { color:var(--ink); }
.fed-chart { height:260px; width:100%; }
.fed-box { max-height:calc(100vh - 17.5rem); min-height:130px; width:100%; }
.fed-grid { height:100%; width:100%; --ag-background-color:var(--card);
  --ag-foreground-color:var(--ink); --ag-header-background-color:var(--card); --ag-border-color:var(--line);
  --ag-odd-row-background-color:var(--card); --ag-header-text-color:var(--ink);
  --ag-secondary-foreground-color:var(--soft); }
.fed-no-match { display:none; color:var(--soft); }
.fed-none .fed-no-match { display:block; }
.fed-table { width:100%; border-collapse:collapse; font-size:.92rem; }
.fed-table th { text-align:left; color:var(--soft); font-weight:600; font-size:.8rem; padding:.3rem .5rem; }
.fed-table td { padding:.35rem .5rem; border-top:1px solid var(--line); vertical-align:top; }
.fed-table th, .fed-table td { white-space:nowrap; }
.fed-table .fed-words { white-space:normal; min-width:11rem; overflow-wrap:anywhere; }
.fed-legend { font-size:.8rem; color:var(--soft); gap:.2rem .9rem; }
.fed-swatch { display:inline-block; width:.7rem; height:.7rem; border-radius:2px; margin-right:.4rem;
  background:var(--swatch); }
.fed-legend > :not(.fed-remark)::before { content:""; display:inline-block; width:.7rem; height:.7rem;
  border-radius:2px; margin-right:.35rem; background:var(--swatch); }
.fed-scroll { overflow:auto; max-height:24rem; width:100%; }
.fed-failure { border-left:4px solid var(--red); padding:.1rem .7rem; }
.fed-history { font-variant-numeric:tabular-nums; }
.fed-bar { height:8px; background:var(--line); border-radius:99px; overflow:hidden; width:100%; }
.fed-bar > div { height:100%; background:var(--accent); transition:width .3s; }
.fed-main .q-btn { text-transform:none; }
.fed-primary { background:var(--accent) !important; color:var(--card) !important; }
.fed-danger { color:var(--red) !important; border:1px solid currentColor; }
.fed-main :focus-visible, .fed-header :focus-visible { outline:2px solid var(--accent); outline-offset:2px; }
@media (max-width:640px) { .fed-main { padding:.7rem; } .fed-header { gap:.4rem; padding:.3rem .6rem; }
  .fed-count { min-width:0; flex:1 1 40%; } .fed-box { max-height:75vh; } .fed-title { font-size:1.1rem; }
  .fed-table, .fed-table tbody { display:block; } .fed-table thead { display:none; }
  .fed-table tr { display:flex; flex-wrap:wrap; gap:.1rem .9rem; align-items:baseline; padding:.45rem 0;
    border-top:1px solid var(--line); }
  .fed-table td { display:flex; gap:.35rem; align-items:baseline; padding:0; border:0; }
  .fed-table .fed-words { flex-basis:100%; min-width:0; }
  .fed-table td::before { color:var(--soft); font-size:.8rem; flex:none; }
  .fed-table td:nth-child(3)::before { content:var(--name3); }
  .fed-table td:nth-child(4)::before { content:var(--name4); }
  .fed-table td:nth-child(5)::before { content:var(--name5); }
  .fed-table td:nth-child(6)::before { content:var(--name6); }
  .fed-table td:nth-child(7)::before { content:var(--name7); }
  .fed-table td:nth-child(8)::before { content:var(--name8); }
  .fed-table .fed-history td::before { content:none; } }
@media (prefers-reduced-motion:reduce) { * { transition:none !important; animation:none !important; } }
"""


TICK_S = 0.4
"""Between two looks at what is new: below the second in which a change has to be on the screen."""

REFUSALS = (ManagerError, BusError, IdentityError)
"""What the manager may say no with; its words are for people."""

_NAVIGATION = (("Fleet", "/"), ("Tasks", "/tasks"))
_REMEMBERED = "localStorage.getItem('fedops-dark')"


class PageView:
    """One for all pages and visitors."""

    def __init__(self, api: Api, context: ManagerContext, rows: FleetRows) -> None:
        self._navigation = (*_NAVIGATION, ("Sites", "/sites")) if context.settings.sites else _NAVIGATION
        self.api = api
        self.context = context
        self.rows = rows

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
        broker = self.context.connection.broker
        with ui.element("div").classes("fed-banner").props('role="alert"') as banner:
            ui.icon("cloud_off")
            with ui.element("div").classes("fed-row"):
                ui.label(f"No broker at {broker}: what you see is how it was. Trying again all the time; start it with")
                ui.label("fedops-mqtt broker").classes("fed-code")

        with ui.element("div").classes("fed-banner").props('role="alert"') as losses:
            ui.icon("warning")
            problem = ui.label()

        def look() -> None:
            banner.set_visibility(not self.context.connection.is_connected)
            problem.set_text(self.context.bus_reader.dropped_messages.problem or "")
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
    life = view.context.events.subscribed()
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
