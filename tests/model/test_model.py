"""A few hundred seeded schedules over the pure core; `make model` plays 10,000. A failure names its seed."""

import pytest
from model_world import BrokenInvariantError, World
from mutants import MUTANTS, Mutant

FIRST_SEED = 1
SHORT, SCHEDULES = 50, 300
"""Schedules of `make test` and of `make test-all`."""
GUILTY_WITHIN = 1000
"""A lease that nothing but its end repairs is met once in some 300 schedules, whatever the seeds."""
BATCH = 25


def play(first: int, count: int) -> None:
    for seed in range(first, first + count):
        World(seed).play()


@pytest.mark.parametrize(
    "first",
    [
        *range(FIRST_SEED, FIRST_SEED + SHORT, BATCH),
        *(pytest.param(first, marks=pytest.mark.long) for first in range(FIRST_SEED + SHORT, SCHEDULES, BATCH)),
    ],
)
def test_no_schedule_of_faults_breaks_a_guarantee(first: int) -> None:
    play(first, BATCH)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_without_trouble_a_run_completes_at_once(seed: int) -> None:
    World(seed, is_troubled=False).play()


def test_a_seed_stands_for_one_schedule() -> None:
    first, again = World(7), World(7)
    first.play()
    again.play()
    assert list(first.kernel.history) == list(again.kernel.history)


@pytest.mark.long
@pytest.mark.timeout(3600)  # up to 1,000 schedules
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_the_model_detects_a_broken_rule(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutant.where, mutant.name, mutant.broken)
    with pytest.raises(BrokenInvariantError, match=mutant.breaks):
        play(FIRST_SEED, GUILTY_WITHIN)
