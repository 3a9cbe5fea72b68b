"""The verb `simulate`: an app and its server program, with many virtual clients on this machine."""

import asyncio
import json as jsons
import os
from pathlib import Path
from typing import Annotated

import typer

from fedops_mqtt.cli.options import shows
from fedops_mqtt.cli.output import readable


@shows("fedops-mqtt simulate --app client_main:make_client --server server_main.py --clients 20 --rounds 5")
def simulate(
    app: Annotated[str, typer.Option(help="MODULE:ATTRIBUTE of what a device trains.")],
    server: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The FL server's program.")],
    clients: Annotated[int, typer.Option(min=1, max=100_000, help="Virtual clients.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="Rounds to train.")] = 3,
    workers: Annotated[int, typer.Option(min=0, max=1024, help="Processes that play them; 0: one a core.")] = 0,
    task_id: Annotated[str, typer.Option(help="The task's name.")] = "simulation",
    task_config: Annotated[Path | None, typer.Option(exists=True, help="YAML that the app finds as its cfg.")] = None,
    folder: Annotated[Path, typer.Option(help="Where models and clients' states are kept.")] = Path(".simulation"),
    json: Annotated[bool, typer.Option("--json", help="The last line on stdout is one JSON object.")] = False,
) -> None:
    """Run the same app and the same server with many virtual clients on this machine, without a broker.

    Each client has a `partition-id` in its node_config, and the number of them all; what it trains goes over the line.
    """
    from fedops_mqtt.protocol import ServerMetrics
    from fedops_mqtt.runtime.systemd import ExitCode
    from fedops_mqtt.simulation import run

    options = run.SimulationOptions(
        app=app,
        server=server,
        num_clients=clients,
        num_rounds=rounds,
        num_workers=min(clients, workers or os.cpu_count() or 1),
        task_id=task_id,
        folder=folder,
        task_config=task_config,
    )

    def show(metrics: ServerMetrics) -> None:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in metrics.metrics.items() if value is not None)
        if not json:
            print(readable(f"round {metrics.round}: {numbers}"), flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = asyncio.run(run.simulate(options, show))
    except run.SimulationError as error:
        typer.echo(readable(f"fedops-mqtt simulate: {error}"), err=True)
        raise SystemExit(ExitCode.FAILED) from None
    if json:
        fields = {name: getattr(result, name) for name in result.__slots__}
        print(jsons.dumps(fields))
    else:
        how = f"{result.outcome}: {result.reason}; {result.rounds} rounds in {result.seconds:g} s; {result.model_path}"
        print(readable(how))
    for client_mac, reason in result.failed_clients.items():
        typer.echo(f"{client_mac}: {readable(reason)}", err=True)
    raise SystemExit(ExitCode.OK if result.outcome == "completed" else ExitCode.FAILED)
