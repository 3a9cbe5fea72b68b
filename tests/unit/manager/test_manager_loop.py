"""The loop and what runs beside it, on a real journal: nothing that goes on meanwhile ends a turn, nothing is kept."""

import asyncio
import gc
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import CODE, PROJECT, zipped

from fedops_mqtt.apps import BundleLimits
from fedops_mqtt.bus import Connected, Connection, Received
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.core.run import Run, RunSpec, apply_all
from fedops_mqtt.core.run_member import (
    ClientChosen,
    RunClosed,
    RunEvent,
    ServerExited,
    ServerHostLost,
    ServerLaunched,
    TriggerFired,
)
from fedops_mqtt.manager.actions import Executor, TriggerPublisher
from fedops_mqtt.manager.api.models import RunRequest
from fedops_mqtt.manager.api.prometheus import ManagerMetrics
from fedops_mqtt.manager.app_store import AppStore, PublishRules
from fedops_mqtt.manager.bus_reader import BusReader
from fedops_mqtt.manager.context import Clock, ManagerContext, RunEventQueue
from fedops_mqtt.manager.errors import NotLaunchableError
from fedops_mqtt.manager.events import Events
from fedops_mqtt.manager.journal import Journal, JournaledRun, Launch
from fedops_mqtt.manager.journal_reader import NUM_READERS
from fedops_mqtt.manager.line_probe import line_answers
from fedops_mqtt.manager.loop import Manager
from fedops_mqtt.manager.open_runs import OpenRuns, RunStatusPublisher
from fedops_mqtt.manager.run_record import dump_run, load_run
from fedops_mqtt.manager.run_service import RunService
from fedops_mqtt.manager.servers import Servers
from fedops_mqtt.manager.tasks import TaskConfig, Tasks
from fedops_mqtt.protocol import ClientStatus, CurrentRun, Phase, RunOutcome, ServerStatus, topics, utc_now
from fedops_mqtt.protocol.values import MAX_LIMIT_S
from fedops_mqtt.runtime.machine import host_id
from fedops_mqtt.runtime.settings import ManagerSettings

A = "02:00:00:00:00:01"
PATIENCE_S = 300


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(f"sqlite:///{tmp_path / 'manager.db'}") as opened:
        yield opened


def a_run(run_id: str = "run-1", task_id: str = "digits") -> Run:
    return Run(spec=RunSpec(run_id=run_id, task_id=task_id, num_rounds=1, min_clients=1), created_at=1.0)


def a_bundle() -> bytes:
    return zipped({"pyproject.toml": PROJECT.encode(), "digits/__init__.py": CODE.encode()})


def trains(task_id: str, run_id: str) -> Received:
    status = ClientStatus(
        instance="i", epoch=1, seq=1, at=utc_now(), status="train-started", task_id=task_id, client_mac=A,
        run=CurrentRun(run_id=run_id, attempt=1, launch=1, phase=Phase.TRAINING),
    )  # fmt: skip
    return Received(topics.client_status(task_id, A), status, is_retained=False)


async def test_a_change_of_a_run_is_shown_only_after_the_database_has_it(journal: Journal) -> None:
    journal.add_run(JournaledRun(run=a_run(), secret=b"s"))
    open_runs = OpenRuns(journal.open_runs())
    await open_runs.wait_written()
    open_runs.apply("run-1", [RunClosed(RunOutcome.FAILED, "why")], 2.0)
    reader = asyncio.ensure_future(open_runs.wait_written())
    await asyncio.sleep(0)
    batch = open_runs.take_batch()
    assert batch.runs
    assert not reader.done()
    await journal.call(journal.write, batch)
    batch.written.set()
    await reader


async def test_archiving_a_run_while_a_turn_is_written_ends_no_manager(journal: Journal, tmp_path: Path) -> None:
    run = a_run()
    journal.add_run(JournaledRun(run=run, secret=b"s"))
    context, manager = parts(journal, tmp_path)
    over = [ClientChosen(A), TriggerFired(A, 1, "i", 1), ServerLaunched(1), RunClosed(RunOutcome.FAILED, "why")]
    context.open_runs.apply(run.run_id, over, 2.0)
    context.bus_reader.apply([Connected(protocol_version=5), trains("digits", "run-1")], context.clock.now())
    go_on = threading.Event()
    busy = asyncio.ensure_future(journal.call(go_on.wait, PATIENCE_S))
    turn = asyncio.ensure_future(manager.turn(0))
    async with asyncio.timeout(PATIENCE_S):
        while context.open_runs["run-1"].members[A].stop_sent_at is None:  # noqa: ASYNC110 - planned, and not yet written
            await asyncio.sleep(0)
    context.open_runs.drop(run.run_id)
    go_on.set()
    assert await busy
    await turn
    assert journal.reader.find_run("run-1") is not None


async def test_a_run_whose_task_was_not_kept_fails_with_a_reason_and_ends_no_manager(
    journal: Journal, tmp_path: Path
) -> None:
    run = replace(a_run(), created_at=Clock().now())
    journal.add_run(JournaledRun(run=run, secret=b"s", task=None))  # as an earlier program wrote it
    context, manager = parts(journal, tmp_path)
    await manager.turn(0)
    await manager.turn(0)
    assert "'digits'" in (context.open_runs["run-1"].exit_reason or "")


def with_tasks(context: ManagerContext, folder: Path, text: str) -> None:
    file = folder / "tasks.toml"
    file.write_text(text)
    context.tasks.path = file
    context.tasks.refresh()


@pytest.mark.parametrize("content", [b"stroe = 1\n", b"= [", b"\xff", b"a = " + b"[" * 5000, None])
async def test_a_settings_file_of_a_server_elsewhere_that_cannot_be_used_is_why_a_start_is_refused(
    journal: Journal, tmp_path: Path, content: bytes | None
) -> None:
    context, _ = parts(journal, tmp_path)
    file = tmp_path / "bundle.toml"
    if content is not None:
        file.write_bytes(content)
    task = '[tasks.digits]\nmodule = "m"\nlaunch = ["env", "{command}"]\nconfig = "bundle.toml"\n'
    with_tasks(context, tmp_path, task)
    service = RunService(context, bundle_server="no.such.module")
    with pytest.raises(NotLaunchableError, match=f"settings file {file}"):
        await service.start(RunRequest(task_id="digits"))
    file.write_text('store = "s3://models"\n')
    assert (await service.start(RunRequest(task_id="digits"))).spec.task_id == "digits"


async def test_a_disk_that_is_full_is_why_a_start_is_refused(journal: Journal, tmp_path: Path) -> None:
    context, _ = parts(journal, tmp_path)
    with_tasks(context, tmp_path, "[tasks.digits]\n")
    await context.apps.publish(a_bundle(), "digits", None, at=1.0, in_use=tuple)
    shutil.rmtree(tmp_path / "apps")
    (tmp_path / "apps").write_text("no folder")
    with pytest.raises(NotLaunchableError, match="apps"):
        await RunService(context, bundle_server="no.such.module").start(RunRequest(task_id="digits"))


async def test_a_start_that_waits_behind_long_reads_holds_up_no_turn(journal: Journal, tmp_path: Path) -> None:
    context, manager = parts(journal, tmp_path)
    with_tasks(context, tmp_path, "[tasks.digits]\n[tasks.letters]\nadopt = true\n")
    await context.apps.publish(a_bundle(), "digits", None, at=1.0, in_use=tuple)
    go_on = threading.Event()
    reads = [asyncio.ensure_future(journal.reader.call(go_on.wait, PATIENCE_S)) for _ in range(NUM_READERS)]
    start = asyncio.ensure_future(manager._run_service.start(RunRequest(task_id="digits")))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not context.apps.lock.locked():  # noqa: ASYNC110 - the start waits for a reader then
                await asyncio.sleep(0)
            context.bus_reader.unknown_servers["letters"] = ServerStatus(
                instance="i", epoch=1, seq=1, at=utc_now(), status="ready", task_id="letters", run_id="run-of-another",
                server_ip="127.0.0.1:1",
            )  # fmt: skip
            turn = asyncio.ensure_future(manager.turn(0))
            await asyncio.wait([turn, *reads], return_when=asyncio.FIRST_COMPLETED)
            assert turn.done()
            assert not start.done()
            await turn
            assert "run-of-another" in context.open_runs
    finally:
        go_on.set()
        await asyncio.wait([*reads, start])
    assert (await start).spec.app is not None


def test_one_address_in_two_tasks_is_two_stragglers() -> None:
    bus_reader = BusReader(Fleet(), OpenRuns([]))
    bus_reader.apply([Connected(protocol_version=5), trains("digits", "closed-1"), trains("letters", "closed-2")], 1.0)
    assert set(bus_reader.clients_of_closed_runs) == {("digits", A), ("letters", A)}


async def test_nothing_of_a_server_is_kept_when_its_run_is_archived(journal: Journal, tmp_path: Path) -> None:
    exits: asyncio.Queue[RunEvent] = asyncio.Queue()
    servers = Servers(
        journal=journal, apps=apps_in(tmp_path, journal),
        report=lambda _, event: exits.put_nowait(event), folder=tmp_path, inherited={},
        common_settings={"round_limit_s": 1}, grace_s=1.0,
    )  # fmt: skip
    async with servers.tending(), asyncio.timeout(PATIENCE_S):
        for number in range(3):
            run = apply_all(a_run(f"run-{number}"), [ServerLaunched(1)], 2.0)
            journal.add_run(JournaledRun(run=run, secret=b"s"))
            servers.launch(run, 1, b"s", TaskConfig(command=("true",), cwd=tmp_path))
            assert isinstance(await exits.get(), ServerExited)
            servers.forget(run.run_id)
        await asyncio.sleep(0)
        gc.collect()
        kept = [each.get_name() for each in gc.get_objects() if isinstance(each, asyncio.Task)]
        assert [name for name in kept if name.startswith("server-")] == []


async def test_a_server_that_is_just_being_launched_counts_as_running(journal: Journal, tmp_path: Path) -> None:
    exits: asyncio.Queue[RunEvent] = asyncio.Queue()
    servers = Servers(
        journal=journal, apps=apps_in(tmp_path, journal), report=lambda _, event: exits.put_nowait(event),
        folder=tmp_path, inherited={}, common_settings={}, grace_s=1.0,
    )  # fmt: skip
    async with servers.tending(), asyncio.timeout(PATIENCE_S):
        run = apply_all(a_run("run-1"), [ServerLaunched(1)], 2.0)
        journal.add_run(JournaledRun(run=run, secret=b"s"))
        servers.launch(run, 1, b"s", TaskConfig(command=("true",), cwd=tmp_path))
        assert servers.num_running == 1, "or a manager that ends its servers leaves this one behind"
        assert isinstance(await exits.get(), ServerExited)
        while servers.num_running:  # noqa: ASYNC110 - the end of its life has no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("address", ["fl..example.org:9000", f"{'x' * 64}:9", "h:٣", "127.0.0.1:99999", "h"])
async def test_an_address_that_cannot_be_connected_to_does_not_answer(address: str) -> None:
    assert not await line_answers(address, within_s=0.03)


SHELL = ("sh", "-c", "exec {shell_command}")


@pytest.mark.parametrize(
    "wrong",
    [
        {"env": {"A=B": "1"}},
        {"command": ("true\0",)},
        {"launch": ("sh", "-c", "${name:-x} {shell_command}")},
    ],
)
async def test_what_is_wrong_with_one_servers_task_is_the_reason_of_its_run_and_ends_no_other(
    journal: Journal, tmp_path: Path, wrong: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """A tasks file has none of these any more; a journal may."""
    reported: asyncio.Queue[tuple[str, RunEvent]] = asyncio.Queue()
    servers = Servers(
        journal=journal, apps=apps_in(tmp_path, journal),
        report=lambda run_id, event: reported.put_nowait((run_id, event)), folder=tmp_path, inherited={},
        common_settings={"store": "s3://models", "state_dir": str(tmp_path)}, grace_s=1.0,
    )  # fmt: skip
    task = TaskConfig(command=("true",), cwd=tmp_path)
    async with servers.tending(), asyncio.timeout(PATIENCE_S):
        for name, its_task in (("wrong", task.model_copy(update=wrong)), ("right", task)):
            run = apply_all(a_run(name), [ServerLaunched(1)], 2.0)
            journal.add_run(JournaledRun(run=run, secret=b"s"))
            servers.launch(run, 1, b"s", its_task)
        ends: dict[str, ServerExited] = {}
        while len(ends) < 2:
            run_id, event = await reported.get()
            assert isinstance(event, ServerExited), event
            ends[run_id] = event
    assert ends["wrong"].launch == 1
    assert ends["wrong"].reason.startswith("FL server cannot be started or supervised: ")
    assert ends["right"].reason == "FL server process exited with status 0"
    (logged,) = [record for record in caplog.records if record.message == "an FL server cannot be supervised"]
    assert logged.exc_info is not None
    assert vars(logged)["run_id"] == "wrong"


def servers_in(folder: Path, journal: Journal, reported: "asyncio.Queue[RunEvent]") -> Servers:
    return Servers(
        journal=journal, apps=apps_in(folder, journal), report=lambda _, event: reported.put_nowait(event),
        folder=folder, inherited={"PATH": os.environ["PATH"]},
        common_settings={"store": "s3://models", "state_dir": str(folder)}, grace_s=1.0,
    )  # fmt: skip


@pytest.mark.parametrize("is_away", [False, True])
async def test_what_an_earlier_manager_met_at_a_host_is_the_runs_reason_only_while_it_is_so(
    journal: Journal, tmp_path: Path, is_away: bool
) -> None:
    alive = ("false",) if is_away else ("echo", "it lives")
    task = TaskConfig(launch=SHELL, launch_alive=alive, launch_stop=("true",))
    run = apply_all(a_run(), [ServerLaunched(1), ServerHostLost(1, "met before")], 2.0)
    journal.add_run(JournaledRun(run=run, secret=b"s", task=task))
    reported: asyncio.Queue[RunEvent] = asyncio.Queue()
    servers = servers_in(tmp_path, journal, reported)
    known = Launch(run_id=run.run_id, launch=1, log_path=str(tmp_path / "log"), secret_file="", host=host_id())
    async with servers.tending(), asyncio.timeout(PATIENCE_S):
        servers.resume(run, [known], b"s", task)
        run = apply_all(run, [await reported.get()], 3.0)
        assert (run.host_problem, run.launched_at, run.exited_at) == (None, 3.0, None)
        if is_away:
            run = apply_all(run, [await reported.get()], 4.0)
            assert run.host_problem == "the FL server's host does not answer: false exited with status 1: "


async def test_a_launch_whose_template_for_its_host_is_wrong_is_given_up_where_nothing_has_started(
    journal: Journal, tmp_path: Path
) -> None:
    """A tasks file has no such template any more; a journal may."""
    its_task = {"launch": ("false", "{shell_command}"), "launch_alive": ("sh", "-c", "${name:-x}")}
    task = TaskConfig(command=("true",)).model_copy(update=its_task)
    limits = RunLimits(server_start_s=1.0)
    run = apply_all(replace(a_run(), spec=replace(a_run().spec, limits=limits)), [ServerLaunched(1)], 2.0)
    journal.add_run(JournaledRun(run=run, secret=b"s"))
    reported: asyncio.Queue[RunEvent] = asyncio.Queue()
    servers = servers_in(tmp_path, journal, reported)
    async with servers.tending(), asyncio.timeout(PATIENCE_S):
        servers.launch(run, 1, b"s", task)
        while run.exited_at is None:
            run = apply_all(run, [await reported.get()], 3.0)
    assert str(run.exit_reason).startswith(
        "FL server cannot be started: its command cannot be made of 'sh -c ${name:-x}'"
    )


async def test_what_is_wrong_here_does_not_end_a_server_elsewhere_which_is_supervised_again(
    journal: Journal, tmp_path: Path
) -> None:
    mark, logs = tmp_path / "lives", tmp_path / "runs" / "run-1"
    mark.touch()
    logs.parent.mkdir()
    logs.touch()  # a file in the place of the logs' folder: no log can be copied
    task = TaskConfig(launch=("sh", "-c", f"if test -e {mark}; then echo it lives; fi # {{shell_command}}"))
    run = apply_all(a_run(), [ServerLaunched(1)], 2.0)
    journal.add_run(JournaledRun(run=run, secret=b"s", task=task))
    reported: asyncio.Queue[RunEvent] = asyncio.Queue()
    servers = servers_in(tmp_path, journal, reported)
    known = Launch(
        run_id=run.run_id, launch=1, log_path=str(logs / "server-1.log"), secret_file="", host=host_id()
    )  # fmt: skip
    async with servers.tending(), asyncio.timeout(PATIENCE_S):
        servers.resume(run, [known], b"s", task)
        first = await reported.get()
        assert isinstance(first, ServerHostLost), first
        assert str(first.problem).startswith("FL server cannot be started or supervised: NotADirectoryError: ")
        logs.unlink()
        mark.unlink()
        run = apply_all(run, [first], 3.0)
        while run.exited_at is None:
            run = apply_all(run, [await reported.get()], 4.0)
        assert run.host_problem is None
    assert str(run.exit_reason).startswith("FL server launch command exited with status 0")


async def test_a_server_gets_no_longer_limits_than_it_takes(journal: Journal, tmp_path: Path) -> None:
    """A run of the version before may have longer ones."""
    long = RunLimits().model_copy(update={"join_s": 1e9, "run_s": 1e300, "round_s": 60.0})
    stored = dump_run(replace(a_run(), spec=replace(a_run().spec, limits=long)))
    assert "1000000000" in stored
    run = apply_all(load_run(stored, {}), [ServerLaunched(1)], 2.0)
    journal.add_run(JournaledRun(run=run, secret=b"s"))
    reported: asyncio.Queue[RunEvent] = asyncio.Queue()
    servers = servers_in(tmp_path, journal, reported)
    printed = 'echo "$FEDOPS_MQTT_JOIN_LIMIT_S $FEDOPS_MQTT_RUN_LIMIT_S $FEDOPS_MQTT_ROUND_LIMIT_S"; exit 1'
    async with servers.tending(), asyncio.timeout(PATIENCE_S):
        servers.launch(run, 1, b"s", TaskConfig(command=("sh", "-c", printed), cwd=tmp_path))
        event = await reported.get()
    assert isinstance(event, ServerExited)
    assert event.reason.endswith(f"last lines of its log: {MAX_LIMIT_S} {MAX_LIMIT_S} 60.0")


def apps_in(folder: Path, journal: Journal) -> AppStore:
    return AppStore(journal, folder / "apps", PublishRules(limits=BundleLimits(), takes_unsigned=True))


def parts(journal: Journal, folder: Path) -> tuple[ManagerContext, Manager]:
    """A manager's loop and what it needs, with a broker that it never reaches."""
    settings = ManagerSettings(broker="mqtt://127.0.0.1:1", state_dir=folder)
    open_runs = OpenRuns(journal.open_runs())
    bus_reader, connection = BusReader(Fleet(), open_runs), Connection(settings.broker)
    context = ManagerContext(
        apps=apps_in(folder, journal), settings=settings, term=1, clock=Clock(), journal=journal,
        tasks=Tasks(None), open_runs=open_runs, bus_reader=bus_reader,
        event_queue=RunEventQueue(), connection=connection, events=Events(),
        meters=ManagerMetrics(bus_reader=bus_reader, open_runs=open_runs, connection=connection),
    )  # fmt: skip
    servers = Servers(
        journal=journal,
        apps=context.apps,
        report=context.event_queue.put,
        folder=folder,
        inherited={},
        common_settings={},
        grace_s=1.0,
    )
    executor = Executor(
        context, servers=servers, trigger_publisher=TriggerPublisher(connection, context.event_queue.put)
    )
    status_publisher, run_service = (
        RunStatusPublisher(open_runs, term=1),
        RunService(context, bundle_server="no.such.module"),
    )
    return context, Manager(
        context, status_publisher=status_publisher, servers=servers, executor=executor, run_service=run_service
    )
