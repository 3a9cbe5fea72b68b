"""What the processes of a test are to do, in a file: how far the server and each device go, or what goes wrong."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

FOLDER = "FEDOPS_TEST_FOLDER"
"""Environment variable with the folder of the test, for every process of it."""

ALL_ROUNDS = 10**6
SERVER = "server"
"""In the place of a MAC: the last round that the server program begins."""
POLL_S = 0.02


def evaluation_of(mac: str) -> str:
    """Return the name under which a device's evaluations are held."""
    return f"evaluation of {mac}"


class DevicePlan:
    """What each device is to do: answer rounds up to a number, or go wrong in its next training."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "device_plan.json"

    def write(self, steps: Mapping[str, int | str]) -> None:
        """Write the steps of devices by MAC; a device that is not named answers every round."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(steps))
        fresh.replace(self._path)

    def of(self, mac: str) -> int | str:
        """Read it."""
        try:
            steps: dict[str, int | str] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return ALL_ROUNDS
        return steps.get(mac, ALL_ROUNDS)

    def wait_for_round(self, mac: str, round_: int) -> str | None:
        """Wait until a round is allowed; or return what is to go wrong."""
        while True:
            order = self.of(mac)
            if isinstance(order, str):
                return order
            if round_ <= order:
                return None
            threading.Event().wait(POLL_S)


def own_plan() -> DevicePlan:
    return DevicePlan(Path(os.environ[FOLDER]))
