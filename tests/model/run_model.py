"""`make model`: thousands of seeded schedules over the pure core; a broken one prints its seed and its history.

`make model SEED=4711 SCHEDULES=1` plays one schedule again, exactly. Every core of this machine plays its share.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from model_world import BrokenInvariantError, World

BATCH = 50
"""Schedules that a process is given at a time: a second or two of work."""


def play(seeds: range) -> list[tuple[int, str]]:
    """Play schedules; return the broken ones, each with its history."""
    broken = []
    for seed in seeds:
        try:
            World(seed).play()
        except BrokenInvariantError as error:
            broken.append((seed, str(error)))
    return broken


def play_all(first: int, count: int) -> Iterator[tuple[int, str]]:
    """Yield the broken ones of many schedules, by seed."""
    batches = [range(at, min(at + BATCH, first + count)) for at in range(first, first + count, BATCH)]
    with ProcessPoolExecutor(min(len(batches), os.cpu_count() or 1)) as processes:
        for broken in processes.map(play, batches):
            yield from broken


def main() -> int:
    """Parse the arguments and play."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schedules", type=int, default=10_000)
    wanted = parser.parse_args()
    began, seeds = time.monotonic(), []
    for seed, history in play_all(wanted.seed, wanted.schedules):
        print(history if not seeds else history.splitlines()[0], flush=True)
        seeds.append(seed)
    spent_s = time.monotonic() - began
    print(f"{wanted.schedules} schedules from seed {wanted.seed} on, {len(seeds)} broken, {spent_s:.0f} s")
    if seeds:
        print(f"play it again: make model SEED={seeds[0]} SCHEDULES=1")
    return 1 if seeds else 0


if __name__ == "__main__":
    sys.exit(main())
