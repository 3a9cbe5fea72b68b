"""Counts the processor time of each test, with the processes it started and waited for: `pytest --processor-time=25`.

The clock says nothing on a shared machine; this does. A process whose parent died before it is not counted.
"""

import os
from collections import defaultdict
from collections.abc import Generator
from typing import Any

import pytest

NAME = "processor_time_s"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processor-time", type=int, metavar="N", help="show the N tests that took most processor time")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    item.stash[_BEFORE] = sum(os.times()[:4])
    return (yield)


_BEFORE = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "teardown":
        report.user_properties.append((NAME, sum(os.times()[:4]) - item.stash[_BEFORE]))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    count = config.getoption("--processor-time")
    if not count:
        return
    taken: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == NAME and report.when == "teardown":
                    taken[report.nodeid] += value
    terminalreporter.write_sep("=", f"processor time: {sum(taken.values()):.1f} s in {len(taken)} tests")
    for nodeid, value in sorted(taken.items(), key=lambda each: -each[1])[:count]:
        terminalreporter.write_line(f"{value:8.2f} s  {nodeid}")
