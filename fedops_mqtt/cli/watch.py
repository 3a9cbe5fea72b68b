"""The verb `watch`: a dashboard in the terminal that only reads, and only MQTT, so it works with no manager running.

In a pipe it prints one line a change.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import typer

from fedops_mqtt.cli.examples import shows
from fedops_mqtt.cli.options import takes_settings
from fedops_mqtt.runtime.logs import mute_logging
from fedops_mqtt.runtime.settings import WatchSettings

if TYPE_CHECKING:
    from fedops_mqtt.bus.fleet_view import FleetView, Record

DRAW_S = 0.25
"""Between two pictures: fast enough for the eye, slow enough for a link over ssh."""
_LEASE_CHECK_S = 1.0
_QUIET_S = 0.5
"""MQTT has no end mark for retained messages: when none has come for this long, all are there."""


@shows(
    "fedops-mqtt watch --task-id digits",
    "fedops-mqtt watch --broker mqtt://broker.local:1883 --once --json",
    model=WatchSettings,
)
@takes_settings(WatchSettings)
def watch(
    settings: WatchSettings,
    once: bool = typer.Option(False, "--once", help="Print what is known now, and end."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object a line."),
) -> None:
    """Show clients and runs as they change.

    It only reads, and needs the broker alone: no manager has to run. In a pipe it prints one line a change.
    """
    mute_logging()
    if once:
        asyncio.run(_print_once(settings, is_json=json))
        return
    follow = _print_changes(settings, is_json=json) if json or not sys.stdout.isatty() else _show_live(settings)
    try:
        asyncio.run(follow)
    except KeyboardInterrupt:
        return  # Ctrl-C is how one leaves a dashboard


async def _print_once(settings: WatchSettings, *, is_json: bool) -> None:
    from fedops_mqtt.cli.output import print_records_as_lines

    news = asyncio.Event()
    async with _following(settings, lambda _: news.set()) as fleet_view:
        while await _comes_within(news, _QUIET_S):
            news.clear()
    print_records_as_lines(fleet_view.records(), is_json=is_json)


async def _comes_within(news: asyncio.Event, timeout_s: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await news.wait()
    return news.is_set()


async def _print_changes(settings: WatchSettings, *, is_json: bool) -> None:
    from fedops_mqtt.cli.output import print_records_as_lines

    def print_change(change: "Record | None") -> None:
        if change is not None:
            print_records_as_lines([change], is_json=is_json)

    async with _following(settings, print_change) as fleet_view:
        while True:
            await asyncio.sleep(_LEASE_CHECK_S)
            problem = fleet_view.problem()
            changes = fleet_view.expire(time.monotonic()) + ([problem] if problem is not None else [])
            print_records_as_lines(changes, is_json=is_json)


async def _show_live(settings: WatchSettings) -> None:
    from rich.live import Live

    from fedops_mqtt.cli.live import draw

    async with _following(settings, lambda _: None) as fleet_view:
        with Live(auto_refresh=False, screen=True) as live:
            while True:
                now = time.monotonic()
                fleet_view.expire(now)
                title = f"fedops-mqtt watch {settings.task_id or 'all tasks'}"
                live.update(draw(fleet_view, now=now, height=live.console.height, title=title), refresh=True)
                await asyncio.sleep(DRAW_S)


@asynccontextmanager
async def _following(
    settings: WatchSettings, on_event: "Callable[[Record | None], None]"
) -> "AsyncIterator[FleetView]":
    from fedops_mqtt.bus import BusOptions, connect
    from fedops_mqtt.bus.fleet_view import FleetView, feed
    from fedops_mqtt.runtime.background import alongside

    fleet_view = FleetView()
    async with (
        connect(settings.broker, options=BusOptions.from_settings(settings)) as bus,
        alongside(feed(bus, settings.task_id, fleet_view, on_event), name="watch-feed"),
    ):
        yield fleet_view
