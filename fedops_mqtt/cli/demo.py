"""The verb `demo`: a whole fleet on this machine, one run to its end."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from fedops_mqtt.cli.examples import shows


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
    from fedops_mqtt.cli.demo_screen import TerminalScreen
    from fedops_mqtt.demo.run import DemoOptions, run_demo

    options = DemoOptions(num_clients=clients, num_rounds=rounds, folder=folder, is_json=json, is_kept=keep)
    raise SystemExit(asyncio.run(run_demo(options, TerminalScreen(json))))
