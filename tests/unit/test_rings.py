"""The two rings of tests: what `make test` leaves out, `make test-all` runs; only there may a test be tried again."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
MAX_FLAKY = 10


def flaky_marks() -> Iterator[tuple[str, ast.Call]]:
    """Every `pytest.mark.flaky(...)` of the tests, with the text of its file."""
    for path in sorted(TESTS.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.flaky" in text and path != Path(__file__):
            calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
            yield from ((text, call) for call in calls if ast.unparse(call.func) == "pytest.mark.flaky")


def test_few_tests_are_tried_again_each_in_the_long_ring_and_with_a_reason() -> None:
    marks = list(flaky_marks())
    assert len(marks) <= MAX_FLAKY
    for text, call in marks:
        assert {keyword.arg for keyword in call.keywords} == {"reruns", "reason"}, ast.unparse(call)
        assert "pytest.mark.long" in text, ast.unparse(call)


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
def test_a_limit_that_passes_fails_that_test_alone_and_says_where_it_stood(tmp_path: Path) -> None:
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
