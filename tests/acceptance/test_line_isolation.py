"""Training that goes wrong in every way it can: the daemon says which, nothing is left, the next may come."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from device_plan import DevicePlan
from line_site import APP, FIRST, PROGRAM
from memory_group import kills_in, memory_group
from yard import MARK, Installed, Site, eventually

from fedops_mqtt.demo.reaper import marked
from fedops_mqtt.protocol import ClientCondition, Outcome, RunOutcome
from fedops_mqtt.runtime.processes import MARK as TRAINING

MEGABYTE = 1024**2
FAULTS = {
    "segfault": ("killed by SIGSEGV",),
    "out-of-memory": ("killed by SIGKILL", "out of memory?"),
    "memory-error": ("MemoryError", "Unable to allocate"),
    "exit": ("exit code 7", "leaving by the window"),
    "gigabyte": ("exit code 3", "line 10\n", "line 29"),
    "fork": ("exit code 4",),
    "too-large": ("over the line's limit of 1048576", "max_message_bytes"),
}
"""What goes wrong, and what has to be in the reason."""


@pytest.fixture
def little_memory(site: Site) -> Iterator[Path | None]:
    with memory_group(site.yard.folder) as group:
        yield group


@pytest.mark.long
async def test_every_fault_is_reported_and_leaves_a_daemon_that_is_ready(
    site: Site, device_plan: DevicePlan, little_memory: Path | None
) -> None:
    daemon = await site.start_client(FIRST, APP, partition_id=0, num_partitions=1)
    born = await site.observer.until_client(FIRST, ClientCondition.ONLINE)
    idle_bytes = psutil.Process(daemon.process.pid).memory_info().rss
    await site.start_manager(module=PROGRAM, max_message_bytes=MEGABYTE)
    for fault, words in FAULTS.items():
        device_plan.write({FIRST: fault})
        run_id = await site.start_run(num_rounds=1, min_clients=1)
        run = await site.observer.until_ended(run_id)
        assert run.outcome == RunOutcome.FAILED, (fault, run)
        await site.observer.until(lambda: last_run(site) == run_id)  # noqa: B023 - called here only
        failed = await site.observer.until_client(FIRST, ClientCondition.TRAIN_FAILED)
        assert failed.status.last_run is not None
        reason = failed.status.last_run.reason or ""
        assert failed.status.last_run.outcome == Outcome.FAILED, (fault, reason)
        assert all(word in reason for word in words), (fault, reason)
        assert "line 9\n" not in reason, "the last 20 lines and no more"
        assert not left_of(site), fault
    print("out of memory in a control group of its own:", little_memory)
    assert little_memory is None or kills_in(little_memory) == 1
    device_plan.write({})
    run = await site.observer.until_ended(await site.start_run(num_rounds=1, min_clients=1))
    assert run.outcome == RunOutcome.COMPLETED
    finished = await site.observer.until_client(FIRST, ClientCondition.TRAIN_FINISHED)
    assert finished.status.instance == born.status.instance
    assert psutil.Process(daemon.process.pid).memory_info().rss - idle_bytes < 20 * MEGABYTE


@pytest.mark.long
async def test_unstoppable_training_and_its_children_die_with_their_daemon(site: Site, device_plan: DevicePlan) -> None:
    daemon = await site.start_client(FIRST, APP, partition_id=0, num_partitions=1)
    await site.observer.until_client(FIRST, ClientCondition.ONLINE)
    await site.start_manager(module=PROGRAM)
    device_plan.write({FIRST: "unstoppable"})
    await site.start_run(num_rounds=1, min_clients=1)
    await eventually(lambda: len(descendants(daemon)) == 2)
    daemon.process.kill()
    await eventually(lambda: not left_of(site))


def last_run(site: Site) -> str | None:
    view = site.observer.client(FIRST)
    return view.status.last_run.run_id if view is not None and view.status.last_run is not None else None


def descendants(daemon: Installed) -> list[psutil.Process]:
    return psutil.Process(daemon.process.pid).children(recursive=True)


def left_of(site: Site) -> list[psutil.Process]:
    """Return what is left of this test's trainings; all of it inherits their mark."""
    return [process for process in marked(site.yard.mark, MARK) if TRAINING in environment_of(process)]


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}  # gone meanwhile
