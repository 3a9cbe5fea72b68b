"""Classic strategies (`flwr.server.strategy`) on the line: `start_grid` with a client manager that asks the Grid.

Flower's own manager waits a day for clients and looks for new ones every five seconds; this one never waits for ever.
"""

from flwr.server import History, Server, ServerConfig, SimpleClientManager
from flwr.server.compat import start_grid
from flwr.server.strategy import Strategy

from fedops_mqtt.line.grid import LineGrid

_MAX_WORKERS = 1024
"""Clients asked at the same time; Flower's default is CPUs + 4, and a waiting thread costs next to nothing."""


class GridClientManager(SimpleClientManager):
    """Flower's client manager, waiting on the Grid's truth instead of a condition of its own."""

    def __init__(self, grid: LineGrid) -> None:
        super().__init__()
        self._grid = grid

    def wait_for(self, num_clients: int, timeout: int = 0) -> bool:
        """Wait for clients up to the join limit; `timeout` is Flower's and not used.

        Raises:
            RunOverError: as for `LineGrid.get_node_ids`.
        """
        while self.num_available() < num_clients:  # start_grid wraps this to register who is there
            self._grid.wait_for_clients(num_clients)
        return True


def start_classic(
    *, grid: LineGrid, strategy: Strategy, num_rounds: int, round_timeout_s: float | None = None
) -> History:
    """Run a classic strategy over the line and return Flower's history.

    Raises:
        RunOverError: the run was interrupted, is over a limit, or short of clients.
    """
    manager = GridClientManager(grid)
    server = Server(client_manager=manager, strategy=strategy)
    server.set_max_workers(_MAX_WORKERS)
    config = ServerConfig(num_rounds=num_rounds, round_timeout=round_timeout_s)
    return start_grid(grid=grid, server=server, config=config)
