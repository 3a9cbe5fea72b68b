"""A process that waits for the next training with Flower imported: used, replaced, and gone with its daemon."""

import asyncio
import os
from pathlib import Path

import psutil
from client_testbed import PATIENCE_S, SECRET, Operator, RunDaemon, ServeFl
from leftovers import processes

from fedops_mqtt.device.journal import identity_dir
from fedops_mqtt.device.training_process import mark_of
from fedops_mqtt.protocol import ClientCondition, ClientStatus, Outcome
from fedops_mqtt.runtime.processes import MARK


def waiting(folder: Path) -> list[psutil.Process]:
    """The processes of this identity that were started to wait."""
    mark = mark_of(folder)
    found = []
    for process in processes():
        try:
            if "--ready" in process.cmdline() and process.environ().get(MARK, "").startswith(mark):
                found.append(process)
        except psutil.Error:
            continue
    return found


def has_imported_flower(process: psutil.Process) -> bool:
    try:
        return any("/grpc/" in each.path for each in process.memory_maps())
    except psutil.Error:
        return False


async def until_waiting(folder: Path, *, other_than: int = 0) -> psutil.Process:
    """Wait for the one process that waits: it has imported Flower when it has gRPC's library in its memory."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            ready = [process for process in waiting(folder) if process.pid != other_than]
            if ready and has_imported_flower(ready[0]):
                return ready[0]
            await asyncio.sleep(0.1)


async def until_none(folder: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while waiting(folder):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def has_run(status: ClientStatus, run_id: str) -> bool:
    return status.last_run is not None and (status.last_run.run_id, status.last_run.outcome) == (
        run_id,
        Outcome.FINISHED,
    )


async def test_trainings_take_the_process_that_waits_and_another_one_waits_then(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl, tmp_path: Path, task_id: str, mac: str
) -> None:
    folder = identity_dir(tmp_path, task_id, mac)
    daemon = await run_daemon(keep_ready=True)
    await operator.until_condition(ClientCondition.ONLINE)
    first = await until_waiting(folder)
    await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "2"))
    await operator.until(lambda status: has_run(status, "r1"))
    assert not first.is_running()
    second = await until_waiting(folder, other_than=first.pid)
    os.kill(second.pid, 9)  # as where memory is short: the next training starts without one
    await until_none(folder)
    await operator.trigger(await serve_fl("line", "r2", SECRET.hex(), "2"), run_id="r2")
    await operator.until(lambda status: has_run(status, "r2"))
    await until_waiting(folder, other_than=second.pid)
    daemon.leave()
    await until_none(folder)


async def test_a_training_whose_ready_process_dies_before_it_begins_gets_another(
    run_daemon: RunDaemon, operator: Operator, serve_fl: ServeFl, tmp_path: Path, task_id: str, mac: str
) -> None:
    folder = identity_dir(tmp_path, task_id, mac)
    await run_daemon(keep_ready=True)
    await operator.until_condition(ClientCondition.ONLINE)
    first = await until_waiting(folder)
    first.suspend()
    await operator.trigger(await serve_fl("line", "r1", SECRET.hex(), "2"))
    await operator.until_condition(ClientCondition.TRAIN_STARTED)
    first.kill()
    await operator.until(lambda status: has_run(status, "r1"))


async def test_a_daemon_keeps_no_ready_process_unless_it_is_set(
    run_daemon: RunDaemon, operator: Operator, tmp_path: Path, task_id: str, mac: str
) -> None:
    await run_daemon()
    await operator.until_condition(ClientCondition.ONLINE)
    other = "02:00:00:00:00:02"
    await run_daemon(mac=other, keep_ready=True)  # once its process waits, another one had the time for one too
    await until_waiting(identity_dir(tmp_path, task_id, other))
    assert waiting(identity_dir(tmp_path, task_id, mac)) == []
