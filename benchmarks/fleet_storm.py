"""A broker restarts under thousands: `python benchmarks/fleet_storm.py [--sizes 1000 5000] [--json FILE]`.

Bare connections with our own back-off and our own judgement of the retained topic (`runtime.backoff.Backoff`,
`core.ownership`): what is counted is the policy, not the weight of a client. Orderly: the broker says the wills of the
living, and each must be repaired. Killed: it says none, and is away for some seconds.
"""

import argparse
import asyncio
import resource
import time
from collections import Counter
from pathlib import Path

import orjson
from bench_processes import end_on_sigterm, figure, machine, save_json, table
from fleet import NUM_FILES
from fleet_clients import SimulatedClient, mac_of

from fedops_mqtt.bus import BusOptions, Mosquitto
from fedops_mqtt.bus.connection import STABLE_AFTER_S
from fedops_mqtt.core.ownership import Ownership, Repair, SeenStatus, judge
from fedops_mqtt.protocol import ClientCondition
from fedops_mqtt.runtime.backoff import Backoff

AWAY_S = 5.0
"""A killed broker comes back after this long: longer than a supervisor needs."""
CALM_S = 5.0
"""Watched after everybody is back: a second storm would begin here."""
LIMIT_S = 120.0
BIN_S = 0.1


class StormyClient(SimulatedClient):
    """A client that reconnects and repairs as ours do, and counts what that takes."""

    def __init__(self, number: int, options: BusOptions) -> None:
        super().__init__(number)
        self._backoff = Backoff(initial_s=options.backoff_initial_s, max_s=options.backoff_max_s)
        self._owner = Ownership(instance=f"simulated-{mac_of(number)}")
        self.is_online = False
        self.attempts: list[float] = []
        self.connects: list[float] = []
        self.num_said = 0
        self.num_repairs = 0

    async def stay_connected(self, host: str, port: int) -> None:
        """For ever: connect, publish the birth, wait for the end, wait for our turn."""
        while True:
            self.attempts.append(time.monotonic())
            self.renew()
            self._owner = self._owner.connected(self.epoch)
            try:
                await self.come_online(host, port)
            except OSError:
                self.connection.die()
            else:
                self.connects.append(time.monotonic())
                self.is_online = True
                await self.connection.wait_lost()
                self.is_online = False
                if time.monotonic() - self.connects[-1] >= STABLE_AFTER_S:
                    self._backoff.reset()
            await asyncio.sleep(self._backoff.next_wait_s())

    async def publish_status(self, condition: ClientCondition, **more: object) -> None:
        self.num_said += 1
        await super().publish_status(condition, **more)

    def _take(self, connection: object, topic: str, payload: bytes, *, is_retained: bool) -> None:
        if not topic.endswith("/status"):
            return
        said = orjson.loads(payload)
        word = SeenStatus(
            instance=said["instance"], epoch=said["epoch"], is_out="seq" not in said, is_retained=is_retained
        )
        now = time.monotonic()
        self._owner, decision = judge(self._owner, word, now=now)
        if isinstance(decision, Repair):
            self.num_repairs += 1
            asyncio.get_running_loop().call_later(max(0.0, decision.at - now), self._repair)

    def _repair(self) -> None:
        if self.is_online:
            self.answer(self.publish_status(ClientCondition.ONLINE))


async def storm(size: int, *, is_orderly: bool) -> dict:
    """Restart a broker under a fleet; return what the fleet did until it was calm again."""
    clients = [StormyClient(number, BusOptions()) for number in range(size)]
    async with Mosquitto() as broker, asyncio.TaskGroup() as group:
        lives = [
            group.create_task(client.stay_connected(broker.host, broker.port), name=client.mac) for client in clients
        ]
        await until_all_online(clients)
        await asyncio.sleep(STABLE_AFTER_S)
        said_before = sum(client.num_said for client in clients)
        began = time.monotonic()
        if is_orderly:
            await broker.restart()
        else:
            await broker.kill()
            await asyncio.sleep(AWAY_S)
            await broker.start()
        await until_all_online(clients, since=began)
        back_at = time.monotonic()
        await asyncio.sleep(CALM_S)
        for life in lives:
            life.cancel()
    return described(clients, began, back_at) | {
        "statuses_each": (sum(client.num_said for client in clients) - said_before) / size
    }


async def until_all_online(clients: list[StormyClient], since: float = 0.0) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not all(each.is_online and each.connects[-1] >= since for each in clients):  # noqa: ASYNC110 - thousands
            await asyncio.sleep(BIN_S)


def described(clients: list[StormyClient], began: float, back_at: float) -> dict:
    connects = [at for client in clients for at in client.connects if at >= began]
    attempts = [at for client in clients for at in client.attempts if at >= began]
    of_bin = Counter(int((at - began) / BIN_S) for at in attempts)
    per_second = Counter(int(at - began) for at in connects)
    return {
        "back_s": back_at - min(connects),
        "away_s": min(connects) - began,
        "connects_each": len(connects) / len(clients),
        "most_connects": max(sum(at >= began for at in client.connects) for client in clients),
        "attempts_each": len(attempts) / len(clients),
        "busiest_share": max(of_bin.values()) / len(clients),
        "most_a_second": max(per_second.values()),
        "late": sum(at > back_at for at in attempts),
        "repairs_each": sum(client.num_repairs for client in clients) / len(clients),
    }


ROWS = (
    ("broker away until the first connect, s", "away_s", None),
    ("first connect to all online again, s", "back_s", None),
    ("connects a client", "connects_each", 1.05),
    ("most connects of one client", "most_connects", 2),
    ("attempts a client, also while the broker is away", "attempts_each", None),
    ("clients that connect in the busiest 0.1 s, share", "busiest_share", 0.5),
    ("most connects in a second", "most_a_second", None),
    ("attempts after all were online", "late", 0),
    ("statuses a client: its birth, and a repair", "statuses_each", 2),
)


def report(size: int, taken: dict) -> str:
    rows = []
    for name, key, limit in ROWS:
        verdicts = "" if limit is None else "yes" if all(each[key] <= limit for each in taken.values()) else "NO"
        wanted = "" if limit is None else f"at most {limit:g}"
        rows.append((name, *(figure(float(each[key])) for each in taken.values()), wanted, verdicts))
    return f"\n{table((f'{size} clients', *taken, 'wanted', 'holds'), rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1000, 5000], help="clients to simulate")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    end_on_sigterm()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, NUM_FILES) if hard > 0 else NUM_FILES, hard))
    result: dict = {"machine": machine(), "sizes": {}}
    for size in options.sizes:
        taken = {name: asyncio.run(storm(size, is_orderly=name == "orderly")) for name in ("orderly", "killed")}
        result["sizes"][size] = taken
        print(report(size, taken), flush=True)
    save_json(options.json, result)


if __name__ == "__main__":
    main()
