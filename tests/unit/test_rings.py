"""The two rings of tests: what `make test` leaves out, `make test-all` runs; no test is tried again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent


def test_every_folder_of_tests_is_in_a_step_of_make_test_all() -> None:
    plan = subprocess.run(["make", "-n", "test-all"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    named = set(re.findall(r"tests/(\w+)", "\n".join(re.findall(r"-m pytest .*", plan.stdout))))
    assert named == {path.parent.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}


def test_ci_runs_each_step_of_make_test_all() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    steps = re.search(r"^steps=\((.*)\)", script, re.MULTILINE)
    ring = re.search(r"^LONG_RING := (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert steps is not None
    assert ring is not None
    assert steps.group(1).split() == ["check", "test", *ring.group(1).split()]


PROGRAM = """
import asyncio
import time
import pytest

async def test_waits():
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.Event().wait(), name="the other")

async def test_blocks():
    time.sleep(3600)

async def test_spins():
    asyncio.get_running_loop().call_soon(spin)
    await asyncio.Event().wait()

def spin():
    while True:
        pass

@pytest.fixture
async def sticky():
    yield
    await asyncio.Event().wait()

async def test_leaves_a_fixture_that_hangs(sticky):
    pass

def test_fails_with_what_no_stream_takes():
    pytest.fail(chr(0xdc80))

def test_goes_on():
    pass
"""


@pytest.mark.long
def test_a_test_over_its_time_limit_fails_alone_with_its_stack(tmp_path: Path) -> None:
    (tmp_path / "test_limits.py").write_text(PROGRAM)
    (tmp_path / "conftest.py").write_text("from sendable import *\nfrom time_limit import *\n")
    (tmp_path / "pytest.ini").write_text(
        f'[pytest]\nasyncio_mode = auto\ntimeout = 1\npythonpath = "{TESTS / "harness"}"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n1", "-rA", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert "4 failed, 2 passed, 1 error" in done.stdout, done.stdout
    assert done.stdout.count("the limit of 1 s passed; the test stood at:") >= 4
    for position in ("in test_waits", "task the other", "in test_blocks", "in test_spins"):
        assert position in done.stdout
    assert "crashed" not in done.stdout
