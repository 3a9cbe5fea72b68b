"""A short chaos: a fixed schedule of faults over the whole system; `make chaos` runs longer and other ones."""

from pathlib import Path

import pytest
from chaos_world import FAULTS_OF, make_schedule
from fault_proxy import Packets
from run_chaos import chaos

SEED = 20261124
SECONDS = 25.0


@pytest.mark.long
@pytest.mark.timeout(3600)  # the world may take minutes to settle
@pytest.mark.parametrize("profile", FAULTS_OF)
async def test_nothing_breaks_in_a_short_chaos(tmp_path: Path, profile: str) -> None:
    assert await chaos(SEED, seconds=SECONDS, num_clients=3, folder=tmp_path, profile=profile) == []


def test_a_seed_stands_for_one_schedule() -> None:
    first, again, other = (make_schedule(seed, seconds=60, num_clients=4) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_packets_come_out_whole_however_they_arrive() -> None:
    packets = [b"\x40\x02\x00\x07", b"\x30\x81\x01" + bytes(129), b"\xd0\x00"]
    stream = b"".join(packets)
    for size in (1, 2, 3, 100, len(stream)):
        splitter = Packets()
        found = [each for at in range(0, len(stream), size) for each in splitter.feed(stream[at : at + size])]
        assert found == packets
