"""A ServerApp in place of a strategy: the first message strategy that it starts is followed.

Strategies that it starts after that, classic ones and loops of its own run as they are; what the line saw of their
training is all that is known of them.
"""

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedops_mqtt.aggregation.follow import Follower
from fedops_mqtt.aggregation.strategy import Config


def run_server_app(app: ServerApp, *, grid: Grid, follower: Follower, run_config: Config) -> ArrayRecord | None:
    """Run a ServerApp; return the model that it left as an ArrayRecord in `context.state`, None where it left none.

    Raises:
        RunOverError: the line ended the run.
    """
    context = Context(
        run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    with follower.watching():
        app(grid, context)
    records = list(context.state.array_records.values())
    return records[-1] if records and records[-1] else None
