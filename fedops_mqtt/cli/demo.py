"""The verb `demo`: a whole fleet on this machine, one run to its end."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedops_mqtt.bus.fleet_view import FleetView, Record
from fedops_mqtt.cli.options import shows
from fedops_mqtt.cli.output import readable
from fedops_mqtt.cli.watch import DRAW_S, ChangeLines
from fedops_mqtt.runtime.background import alongside

if TYPE_CHECKING:
    from rich.live import Live


@shows("fedops-mqtt demo", "fedops-mqtt demo --clients 8 --rounds 3 --json")
def demo(
    clients: Annotated[int, typer.Option(min=1, max=64, help="Client daemons to start.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds to train.")] = 5,
    folder: Annotated[Path, typer.Option(help="Where the global model is kept, a folder a run.")] = Path(".demo"),
    json: Annotated[bool, typer.Option("--json", help="The last line on stdout is one JSON object.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running after the run, until Ctrl-C.")] = False,
) -> None:
    """Run a whole fleet on this machine and train a model.

    Starts a broker, a manager, client daemons and, through the manager, an FL server, each a process of its own; trains
    on handwritten digits and ends everything it started.
    """
    from fedops_mqtt.demo.run import DemoOptions, run_demo

    options = DemoOptions(num_clients=clients, num_rounds=rounds, folder=folder, is_json=json, is_kept=keep)
    raise SystemExit(asyncio.run(run_demo(options, TerminalScreen(json))))


class TerminalScreen:
    """The demo's output; lines also at a terminal when the last one has to be JSON."""

    def __init__(self, is_json: bool) -> None:
        self._is_live = sys.stdout.isatty() and not is_json
        self._lines = ChangeLines()

    def print_line(self, sentence: str) -> None:
        """Print a sentence."""
        print(readable(sentence), flush=True)

    def note(self, change: Record) -> None:
        """Print a change, where there is no table that shows it."""
        if self._is_live:
            return
        for line in self._lines.of([change]):
            print(line, flush=True)

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
        from fedops_mqtt.cli.watch import draw

        now = time.monotonic()
        live.update(draw(fleet_view, now=now, height=live.console.height, title="fedops-mqtt demo"), refresh=True)
