"""`make model`: thousands of seeded schedules over the pure core; a broken one prints its seed and its story.

`make model SEED=4711 SCHEDULES=1` plays one schedule again, exactly.
"""

import argparse
import sys
import time

from model_world import BrokenInvariantError, World


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--keep-going", action="store_true", help="count the broken ones instead of stopping at one")
    wanted = parser.parse_args()
    began, num_broken = time.monotonic(), 0
    for seed in range(wanted.seed, wanted.seed + wanted.schedules):
        try:
            World(seed).play()
        except BrokenInvariantError as error:
            num_broken += 1
            print(str(error).splitlines()[0] if wanted.keep_going else error, flush=True)
            if not wanted.keep_going:
                print(f"play it again: make model SEED={seed} SCHEDULES=1")
                return 1
    spent_s = time.monotonic() - began
    print(f"{wanted.schedules} schedules from seed {wanted.seed} on, {num_broken} broken, {spent_s:.0f} s")
    return 1 if num_broken else 0


if __name__ == "__main__":
    sys.exit(main())
