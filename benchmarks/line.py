"""The training line against Flower's own transports: `python benchmarks/line.py [--json FILE]`.

Ours and classic gRPC stand side by side and take turns, so that whatever else the machine does hits both; a ratio is
the median over these pairs. SuperLink polls in periods of seconds, it runs by itself, at the end. A part that fails is
said and left out. The exit status is 1 where a part failed or a target is missed.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from bench_processes import end_on_sigterm, figure, machine, save_json, table
from line_teams import Broker, ClassicGrpc, Daemons, Ours, SuperLink, Team

from fedops_mqtt.demo import digits

NUM_CLIENTS = 3
NUM_MANY = 50
WARM_UP = 2
"""Rounds that are not counted: connections grow, allocators fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One model: its dead weight, and how many rounds are worth measuring."""

    name: str
    megabytes: int
    pairs: int
    rounds_a_turn: int
    superlink_rounds: int


SIZES = (
    Size(name="trivial", megabytes=0, pairs=30, rounds_a_turn=20, superlink_rounds=4),
    Size(name="1 MB", megabytes=1, pairs=15, rounds_a_turn=5, superlink_rounds=3),
    Size(name="50 MB", megabytes=50, pairs=5, rounds_a_turn=1, superlink_rounds=2),
)


def main() -> int:
    options = parse()
    end_on_sigterm()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="line-bench-") as place:
        folder = Path(place)
        write_digits(folder / "digits.npz")
        result: dict = {"machine": machine(), "clients": NUM_CLIENTS, "round_s": {}, "memory_mib": {}, "killed_s": {}}
        result |= {"parts": {}, "failed": {}}
        try:
            with Broker(folder) as broker:
                for name, part in parts(folder, broker.url, options):
                    take(result, name, part)
        finally:  # whoever ends it early has what was measured
            result["took_s"] = round(time.monotonic() - began)
            print(report(result), f"It took {result['took_s']} s; load {result['machine']['load']} before.")
            save_json(options.json, result)
    return int(bool(result["failed"]) or any(holds is False for *_, holds in targets(result)))


Part = Callable[[dict], None]
"""Takes figures and puts them into the result."""


def parts(folder: Path, broker: str, options: argparse.Namespace) -> Iterator[tuple[str, Part]]:
    """Yield what is measured, one after the other."""
    sizes = [size for size in SIZES if size.name in options.sizes]
    for size in sizes:
        yield f"{size.name}: ours and classic gRPC in turns", partial(pair, size=size, folder=folder, broker=broker)
    yield "idle daemons", partial(idle, folder=folder, broker=broker)
    yield "ours: a client is killed", partial(killed, make=partial(Ours, folder, broker=broker))
    yield "classic gRPC: a client is killed", partial(killed, make=partial(ClassicGrpc, folder))
    if not options.no_many:
        yield f"{NUM_MANY} clients on this machine", partial(many, folder=folder, broker=broker)
    if not options.no_superlink:
        for size in sizes:
            yield f"{size.name}: SuperLink, some seconds a round", partial(alone, size=size, folder=folder)
        yield "SuperLink: a client is killed", partial(killed, make=partial(SuperLink, folder))


def take(result: dict, name: str, part: Part) -> None:
    """Do one part; one that fails costs the others nothing."""
    print(f"... {name}", flush=True)
    began = time.monotonic()
    try:
        part(result)
    except (RuntimeError, OSError) as error:  # a process ended, or a limit was over (TimeoutError is an OSError)
        print(f"    failed: {error}", flush=True)
        result["failed"][name] = str(error)
    load = round(os.getloadavg()[0], 1)
    result["parts"][name] = {"took_s": round(time.monotonic() - began, 1), "load": load}


@contextmanager
def ready(team: Team) -> Iterator[Team]:
    """A team before its first round."""
    with team:
        team.ready()
        yield team


def pair(result: dict, *, size: Size, folder: Path, broker: str) -> None:
    """Ours and classic gRPC in turns; each turn has the other one before or after it, alternating."""
    shape = {"num_clients": NUM_CLIENTS, "num_floats": size.megabytes * 250_000}
    with ready(Ours(folder, broker=broker, **shape)) as ours, ready(ClassicGrpc(folder, **shape)) as classic:
        if not size.megabytes:
            result["memory_mib"].setdefault("classic-grpc", {})["idle"] = classic.idle_mib()
        ours.rounds(WARM_UP)
        classic.rounds(WARM_UP)
        turns: dict[str, list[float]] = {"ours": [], "classic-grpc": []}
        for number in range(size.pairs):
            for team in (ours, classic) if number % 2 else (classic, ours):
                turns[team.name].append(statistics.median(team.rounds(size.rounds_a_turn)))
        for team in (ours, classic):
            remember(result, team, size, turns[team.name])
    ratios = [mine / theirs for mine, theirs in zip(turns["ours"], turns["classic-grpc"], strict=True)]
    result["round_s"][size.name]["ours / classic-grpc"] = statistics.median(ratios)
    result["round_s"][size.name]["ratios"] = ratios


def idle(result: dict, *, folder: Path, broker: str) -> None:
    """Daemons of ours that are online and wait."""
    with Daemons(folder, broker=broker, number=NUM_CLIENTS) as daemons:
        result["memory_mib"].setdefault("ours", {})["idle"] = daemons.idle_mib()


def killed(result: dict, *, make: Callable[..., Team]) -> None:
    """One of three clients is killed in the middle of a round; two are enough."""
    with ready(make(quorum=NUM_CLIENTS - 1)) as team:
        team.rounds(WARM_UP)
        result["killed_s"][team.name] = team.kill_one_in_round()


def alone(result: dict, *, size: Size, folder: Path) -> None:
    """SuperLink by itself."""
    shape = {"num_clients": NUM_CLIENTS, "num_floats": size.megabytes * 250_000}
    with ready(SuperLink(folder, **shape)) as team:
        result["memory_mib"].setdefault("superlink", {})["idle"] = team.idle_mib()
        team.rounds(1)
        remember(result, team, size, team.rounds(size.superlink_rounds))


def remember(result: dict, team: Team, size: Size, durations: list[float]) -> None:
    result["round_s"].setdefault(size.name, {})[team.name] = statistics.median(durations)
    result["memory_mib"].setdefault(team.name, {})[f"training, {size.name}"] = team.peak_mib()


def many(result: dict, *, folder: Path, broker: str) -> None:
    """Fifty training processes on this machine, the trivial model."""
    with ready(Ours(folder, broker=broker, num_clients=NUM_MANY)) as team:
        team.rounds(WARM_UP)
        durations = team.rounds(20)
    result["many"] = {"clients": NUM_MANY, "round_s": statistics.median(durations), "slowest_s": max(durations)}


def targets(result: dict) -> Iterator[tuple[str, float | None, str, bool | None]]:
    """Yield what is promised: its name, the figure, the limit, whether it holds (None: not measured)."""
    rounds, memory, killed = result["round_s"], result["memory_mib"], result["killed_s"]

    def ratio(first: float | None, second: float | None) -> float | None:
        return first / second if first and second else None

    def of(name: str, team: str) -> float | None:
        return rounds.get(name, {}).get(team)

    def weight(team: str) -> float | None:
        return memory.get(team, {}).get("training, trivial")

    trivial = of("trivial", "ours / classic-grpc")
    large = of("50 MB", "ours / classic-grpc")
    for name, value, limit, is_upper in (
        ("trivial round, ours / classic gRPC", trivial, 1.5, True),
        ("trivial round, SuperLink / ours", ratio(of("trivial", "superlink"), of("trivial", "ours")), 100, False),
        ("50 MB round, classic gRPC / ours", ratio(1, large), 2, False),
        ("training process, ours / classic gRPC", ratio(weight("ours"), weight("classic-grpc")), 0.7, True),
        ("killed client noticed, SuperLink / ours", ratio(killed.get("superlink"), killed.get("ours")), 50, False),
        ("50 clients, seconds a round", result.get("many", {}).get("round_s"), 1, True),
    ):
        holds = None if value is None else value <= limit if is_upper else value >= limit
        yield name, value, f"{'at most' if is_upper else 'at least'} {limit:g}", holds


def report(result: dict) -> str:
    names = ("ours", "classic-grpc", "superlink")
    rows = [
        [f"{size}: seconds a round", *(figure(taken.get(name)) for name in names)]
        for size, taken in result["round_s"].items()
    ]
    memory = result["memory_mib"]
    for what in dict.fromkeys(what for taken in memory.values() for what in taken):
        rows.append([f"MiB a client, {what}", *(figure(memory.get(name, {}).get(what)) for name in names)])
    rows.append(
        ["killed -9: seconds until the round goes on", *(figure(result["killed_s"].get(name)) for name in names)]
    )
    words = {True: "yes", False: "NO", None: "not measured"}
    held = [(name, figure(value), limit, words[holds]) for name, value, limit, holds in targets(result)]
    tables = f"\n{table(('', *names), rows)}\n\n{table(('target', 'measured', 'wanted', 'holds'), held)}\n"
    return f"{tables}\n{verdict(result)}\n"


def verdict(result: dict) -> str:
    held = list(targets(result))
    missed = [name for name, *_, holds in held if holds is False]
    unknown = [name for name, *_, holds in held if holds is None]
    said = [f"Missed: {'; '.join(missed)}." if missed else "No target is missed."]
    said += [f"Not measured: {'; '.join(unknown)}."] if unknown else []
    return " ".join(said)


def write_digits(file: Path) -> None:
    """Write the digits of every client where the app finds them."""
    parts: dict[str, np.ndarray] = {"num_partitions": np.array(NUM_CLIENTS)}
    for number in range(NUM_CLIENTS):
        share = digits.load_partition(number, NUM_CLIENTS)
        parts |= {f"pixels-{number}": share.pixels, f"labels-{number}": share.labels}
    np.savez(file, **parts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    names = [size.name for size in SIZES]
    parser.add_argument("--sizes", nargs="*", choices=names, default=names, help="models to measure")
    parser.add_argument("--no-superlink", action="store_true", help="leave out what needs minutes")
    parser.add_argument("--no-many", action="store_true", help="leave out the fifty clients")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
