"""What the demo shows while it runs: a live table at a terminal, one line a change in a pipe."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fedops_mqtt.bus.fleet_view import FleetView, Record
from fedops_mqtt.cli.output import as_line, readable
from fedops_mqtt.cli.watch import DRAW_S
from fedops_mqtt.runtime.background import alongside

if TYPE_CHECKING:
    from rich.live import Live


class TerminalScreen:
    """Where the demo talks; lines also at a terminal when the last one has to be JSON."""

    def __init__(self, is_json: bool) -> None:
        self._is_live = sys.stdout.isatty() and not is_json

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        print(readable(sentence), flush=True)

    def note(self, change: Record) -> None:
        """Print a change, where there is no table that shows it."""
        if not self._is_live:
            print(as_line(change), flush=True)

    @asynccontextmanager
    async def showing(self, fleet_view: FleetView) -> AsyncIterator[None]:
        """Draw the picture while the block runs; the last one stays on the terminal."""
        if not self._is_live:
            yield
            return
        async with alongside(self._draw(fleet_view), name="demo-screen"):
            yield

    async def _draw(self, fleet_view: FleetView) -> None:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            try:
                while True:
                    self._refresh(live, fleet_view)
                    await asyncio.sleep(DRAW_S)
            finally:
                self._refresh(live, fleet_view)

    def _refresh(self, live: "Live", fleet_view: FleetView) -> None:
        from fedops_mqtt.cli.live import draw

        now = time.monotonic()
        live.update(draw(fleet_view, now=now, height=live.console.height, title="fedops-mqtt demo"), refresh=True)
