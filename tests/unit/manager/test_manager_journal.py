import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres import Postgres
from sqlalchemy import Engine, text, update

from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.core.run import Run, RunSpec, apply_all
from fedops_mqtt.core.run_member import (
    ClientChosen,
    MemberGaveUp,
    RunClosed,
    RunEvent,
    ServerExited,
    ServerLaunched,
    StopRequested,
    TriggerFired,
)
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.errors import JournalAwayError, JournalUrlError, UnreadableRunError
from fedops_mqtt.manager.journal import Batch, Journal, JournaledRun, JournalEvent, Launch
from fedops_mqtt.manager.open_runs import OpenRuns
from fedops_mqtt.manager.tasks import TaskConfig
from fedops_mqtt.protocol import (
    ClientMetrics,
    MemberCondition,
    MetricsKind,
    Phase,
    RunOutcome,
    ServerClient,
    ServerCondition,
    ServerMetrics,
    ServerStatus,
    utc_now,
)

A, B = "02:00:00:00:00:01", "02:00:00:00:00:02"
SECRET = b"s" * 32


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'file.db'}"


@pytest.fixture
def journal(url: str) -> Iterator[Journal]:
    with Journal(url) as opened:
        yield opened


def new_run(run_id: str = "run-1", **changes: object) -> Run:
    spec = RunSpec(run_id=run_id, task_id="digits", num_rounds=3, min_clients=2, clients=(A, B))
    return Run(spec=replace(spec, **changes), created_at=1000.25)  # type: ignore[arg-type]


def server_status(**changes: object) -> ServerStatus:
    known = ServerStatus(
        status=ServerCondition.RUNNING, task_id="digits", run_id="run-1", launch=1, server_ip="[::1]:9000",
        instance="s", epoch=3, seq=2, at=utc_now(), metrics={"loss": float("nan"), "accuracy": 0.1 + 0.2},
        clients={A: ServerClient(status=MemberCondition.TRAINING, attempt=1, phase=Phase.UPLOADING, round=2)},
    )  # fmt: skip
    return known.model_copy(update=changes)


events: st.SearchStrategy[RunEvent] = st.one_of(
    st.builds(ClientChosen, st.sampled_from([A, B])),
    st.builds(TriggerFired, st.sampled_from([A, B]), st.integers(1, 3), st.text(max_size=5), st.integers(1, 2)),
    st.builds(MemberGaveUp, st.sampled_from([A, B]), st.sampled_from(MemberCondition), st.text(max_size=20)),
    st.builds(ServerLaunched, st.integers(1, 3)),
    st.builds(ServerExited, st.integers(1, 3), st.text(max_size=20)),
    st.builds(StopRequested, st.text(min_size=1, max_size=20)),
    st.builds(RunClosed, st.sampled_from(RunOutcome), st.text(max_size=20)),
    st.builds(
        lambda status, reason: server_status(status=status, reason=reason), st.sampled_from(ServerCondition), st.text()
    ),
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(events, max_size=5), max_size=5), st.floats(0, 2e9))
def test_a_run_is_read_as_it_was_written_whatever_happened_to_it(
    journal: Journal, turns: list[list[RunEvent]], now: float
) -> None:
    with journal.engine.begin() as connection:  # what the example before left
        for table in ("members", "events", "runs"):
            connection.execute(text(f"DELETE FROM {table}"))
    run = new_run(limits=RunLimits(join_s=0.1))
    journal.add_run(JournaledRun(run=run, secret=SECRET))
    open_runs = OpenRuns(journal.open_runs())
    for number, turn in enumerate(turns):
        open_runs.apply(run.run_id, turn, now + number / 7)
        journal.write(open_runs.take_batch())
    (found,) = journal.open_runs()
    assert found.run == open_runs[run.run_id] == apply_in_turns(run, turns, now)
    assert found.secret == SECRET


def test_text_and_numbers_that_a_database_has_no_place_for_are_written_all_the_same(journal: Journal) -> None:
    """PostgreSQL has no NUL in texts and no NaN in JSON; a device chooses the names and texts of its numbers."""
    journal.add_run(JournaledRun(run=new_run(), secret=SECRET))
    values = {"a\0": "b\0", "\\u0000": "\\\0", "loss": float("nan"), "best": float("inf"), "\N{SNOWMAN}": 1.5}
    row = {"run_id": "run-1", "task_id": "digits", "client_mac": A, "kind": "round", "round": 1, "at": 1.0}
    journal.write(
        Batch(client_metrics=[{**row, "values": values}], events=[JournalEvent(at=1.0, kind="K", detail={"why": "\0"})])
    )
    journal.add_launch(Launch(run_id="run-1", launch=1, log_path="/log", secret_file="/secret"))
    journal.note_exit("run-1", 1, "its log ends\0so")
    (found,) = journal.reader.list_client_metrics("run-1")
    known = {"a\\x00": "b\\x00", "\\u0000": "\\\\x00", "loss": None, "best": None, "\N{SNOWMAN}": 1.5}
    assert found["values"] == known
    assert journal.list_launches("run-1")[0].exit_reason == "its log ends\\x00so"
    columns, _ = journal.reader.export_columns(tables.client_metrics, "run-1")
    assert {name for name in columns if name.startswith("values.")} == {f"values.{name}" for name in known}


def apply_in_turns(run: Run, turns: list[list[RunEvent]], now: float) -> Run:
    for number, turn in enumerate(turns):
        run = apply_all(run, turn, now + number / 7)
    return run


def test_what_was_written_is_there_for_the_next_process(url: str) -> None:
    with Journal(url) as first:
        first.add_run(JournaledRun(run=new_run(), secret=SECRET))
        first.write_epoch("manager", 7)
    with Journal(url) as second:
        assert second.open_runs()[0].run == new_run()
        assert second.read_epoch("manager") == 7
        assert second.read_epoch("somebody else") == 0


def test_two_writers_of_one_epoch_end_neither_and_the_higher_one_is_kept(journal: Journal) -> None:
    def write(begin: threading.Barrier, owner: str, epoch: int) -> None:
        begin.wait(300)
        journal.write_epoch(owner, epoch)

    with ThreadPoolExecutor(2) as threads:
        for number in range(1, 100):
            begin, owner = threading.Barrier(2), f"owner-{number % 10}"
            writing = [threads.submit(write, begin, owner, number + each) for each in (1, 0)]
            for each in writing:
                each.result(300)
            assert journal.read_epoch(owner) == number + 1


@pytest.mark.long
async def test_a_read_that_the_database_server_ends_is_said_as_such(postgres: Postgres) -> None:
    url = f"{postgres.new_database()}?options=-c%20idle_in_transaction_session_timeout%3D50ms"

    def read_slowly(engine: Engine) -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            time.sleep(0.5)
            connection.execute(text("SELECT 1"))

    with Journal(url) as journal:
        with pytest.raises(JournalAwayError, match="idle-in-transaction timeout"):
            await journal.reader.call(read_slowly, journal.engine)
        assert await journal.reader.call(journal.reader.list_runs) == ([], 0)


def test_writes_survive_a_power_cut_as_far_as_sqlite_can_promise(file_url: str) -> None:
    with Journal(file_url) as journal, journal.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL


def test_a_turn_is_written_whole_or_not_at_all(journal: Journal) -> None:
    run = new_run()
    journal.add_run(JournaledRun(run=run, secret=SECRET))
    later = apply_all(run, [ServerLaunched(1)], 1001.0)
    bad_event = JournalEvent(at=1.0, kind="Odd", detail={"value": object()})
    with pytest.raises(Exception, match="not JSON serializable"):
        journal.write(Batch(runs={run.run_id: (run, later)}, events=[bad_event]))
    assert journal.open_runs()[0].run == run


def test_an_archived_run_is_found_and_listed_but_no_longer_open(journal: Journal) -> None:
    for number in range(3):
        journal.add_run(JournaledRun(run=replace(new_run(f"run-{number}"), created_at=1000.0 + number), secret=SECRET))
    journal.archive("run-1")
    assert [each.run.run_id for each in journal.open_runs()] == ["run-0", "run-2"]
    runs, total = journal.reader.list_runs(limit=2)
    assert ([run.run_id for run, _ in runs], total) == (["run-2", "run-1"], 3)
    assert journal.reader.list_runs(task_id="other") == ([], 0)
    found = journal.reader.find_run("run-1")
    assert found is not None
    assert found.run_id == "run-1"
    assert journal.reader.find_run("run-9") is None


def test_a_run_keeps_its_task_as_it_was_with_what_was_left_out_left_out(journal: Journal) -> None:
    task = TaskConfig(module="m", config=Path("/bundle/s.toml"), env={"A": "b"}, limits=RunLimits(server_lost_s=3))
    journal.add_run(JournaledRun(run=new_run(), secret=SECRET, task=task))
    (found,) = journal.open_runs()
    assert found.task == task
    assert found.task is not None
    assert "listen" not in found.task.model_fields_set, "a default is no wish"


UNREADABLE = {
    "a limit that is null": "UPDATE runs SET state = replace(state, '\"join_s\":120.0', '\"join_s\":null')",
    "a state that is no JSON": "UPDATE runs SET state = 'half a st'",
    "a member of another program": 'UPDATE members SET state = \'{"status":"dancing"}\'',
}
UNREADABLE_WHILE_OPEN = {
    "a secret that is not hexadecimal": "UPDATE runs SET secret = 'geheim'",
}


@pytest.mark.parametrize("what", [*UNREADABLE, *UNREADABLE_WHILE_OPEN])
def test_a_row_that_cannot_be_read_is_left_out_and_named_once(
    journal: Journal, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run("odd")
    journal.add_run(JournaledRun(run=run, secret=SECRET))
    later = apply_all(run, [ClientChosen(A)], 1.0)
    journal.write(Batch(runs={run.run_id: (run, later)}))
    with journal.engine.begin() as connection:
        connection.execute(text({**UNREADABLE, **UNREADABLE_WHILE_OPEN}[what].replace(":", r"\:")))
        connection.execute(text("UPDATE runs SET member_counts = NULL"))
    for number in range(3):
        journal.add_run(JournaledRun(run=replace(new_run(f"run-{number}"), created_at=number), secret=SECRET))
    for _ in range(2):
        assert [each.run.run_id for each in journal.open_runs()] == ["run-0", "run-1", "run-2"]
    if what in UNREADABLE:
        for offset, expected in ((0, ["run-2", "run-1"]), (2, ["run-0"])):
            runs, total = journal.reader.list_runs(limit=2, offset=offset)
            assert ([found.run_id for found, _ in runs], total) == (expected, 3)
        with pytest.raises(UnreadableRunError, match="run 'odd' is in the journal, but cannot be read"):
            journal.reader.find_run("odd")
    assert journal.reader.has_run("odd")
    (named,) = [record for record in caplog.records if "cannot be read" in record.message]
    assert vars(named)["run_id"] == "odd"


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ({"module": "m", "min_clients": 0}, {"module": "m", "command": None, "min_clients": 2}),
        ({"module": "m", "of_a_later_version": 1}, {"module": "m"}),
        ({"launch": ["srun", "{comand}"]}, {"launch": ("srun", "{comand}"), "is_local": False}),
        ({"module": "m", "command": ["c"], "limits": {"join_s": -1}}, {"module": "m", "command": ("c",)}),
        ({"module": "m", "launch": []}, None),
        ({"kubernetes": {}}, None),
        ([], None),
        ("{", None),
    ],
)
def test_a_run_whose_task_is_of_other_rules_is_open_with_what_can_be_read_of_it(
    journal: Journal, stored: object, read: dict[str, object] | None, caplog: pytest.LogCaptureFixture
) -> None:
    journal.add_run(JournaledRun(run=new_run(), secret=SECRET, task=TaskConfig(module="m")))
    with journal.engine.begin() as connection:
        text_of = stored if isinstance(stored, str) else json.dumps(stored)
        connection.execute(update(tables.runs).values(task_config=text_of))
    (found,) = journal.open_runs()
    assert (found.run, found.secret) == (new_run(), SECRET)
    assert (found.task is None) == (read is None)
    for name, value in (read or {}).items():
        assert getattr(found.task, name) == value
    (named,) = [record for record in caplog.records if "cannot be read as a whole" in record.message]
    assert vars(named)["run_id"] == "run-1"


def test_a_list_of_runs_counts_their_clients_without_reading_them(journal: Journal) -> None:
    run = new_run()
    journal.add_run(JournaledRun(run=run, secret=SECRET))
    later = apply_all(run, [ClientChosen(A), ClientChosen(B), MemberGaveUp(B, MemberCondition.FAILED, "why")], 1.0)
    journal.write(Batch(runs={run.run_id: (run, later)}))
    for counted in (True, False):
        ((found, counts),), total = journal.reader.list_runs()
        assert (found.run_id, counts, total) == ("run-1", {"chosen": 1, "failed": 1}, 1)
        if counted:  # a program before this one did not count
            with journal.engine.begin() as connection:
                connection.execute(text("UPDATE runs SET member_counts = NULL"))


def test_members_of_a_program_that_had_no_reason_codes_are_read(journal: Journal) -> None:
    run = new_run()
    journal.add_run(JournaledRun(run=run, secret=SECRET))
    lost = MemberGaveUp(A, MemberCondition.LOST, "interrupted")
    happened = [ServerLaunched(1), ClientChosen(A), server_status(), lost]
    later = apply_all(run, happened, 1.0)
    assert later.server is not None
    journal.write(Batch(runs={run.run_id: (run, later)}))
    drop = "REPLACE(REPLACE(state, '\"reason_code\":null,', ''), ',\"reason_code\":null', '')"
    with journal.engine.begin() as connection:
        for table in ("members", "runs"):
            connection.execute(text(f"UPDATE {table} SET state = {drop}".replace(":null", "\\:null")))
        states = connection.execute(text("SELECT state FROM members UNION ALL SELECT state FROM runs")).scalars().all()
    assert len(states) == 2
    assert not any("reason_code" in state for state in states)
    (found,) = journal.open_runs()
    assert found.run == later


def test_what_came_of_a_run_that_was_deleted_meanwhile_is_dropped_and_the_rest_is_written(journal: Journal) -> None:
    for run_id in ("old", "open"):
        journal.add_run(JournaledRun(run=new_run(run_id), secret=SECRET))
    open_runs = OpenRuns(journal.open_runs())
    for run_id in ("old", "open"):
        open_runs.apply(run_id, [ClientChosen(A), RunClosed(RunOutcome.FAILED, "why")], 2000.0)
        open_runs.note_round(ServerMetrics(task_id="digits", run_id=run_id, round=1, at=utc_now()), 2000.0)
    journal.write(Batch(runs={"old": (new_run("old"), open_runs["old"])}))
    journal.archive("old")
    assert journal.prune(runs_before=2001.0, events_before=0.0) == ["old"]
    journal.write(open_runs.take_batch())
    assert journal.reader.find_run("old") is None
    assert journal.reader.find_run("open") == open_runs["open"]
    assert [row["round"] for row in journal.reader.list_rounds("open")] == [1]


async def test_a_read_that_takes_long_holds_up_no_write(journal: Journal) -> None:
    began, go_on = threading.Event(), threading.Event()

    def look() -> bool:
        began.set()
        return go_on.wait(60)

    reading = asyncio.ensure_future(journal.reader.call(look))
    await asyncio.to_thread(began.wait, 60)
    await journal.call(journal.add_run, JournaledRun(run=new_run(), secret=SECRET))
    assert not reading.done()
    go_on.set()
    assert await reading


def test_a_round_that_is_delivered_twice_is_one_row_of_the_last_launch(journal: Journal) -> None:
    journal.add_run(JournaledRun(run=new_run(), secret=SECRET))
    open_runs = OpenRuns(journal.open_runs())
    for launch, loss in ((1, 0.5), (1, 0.5), (2, 0.4)):
        said = ServerMetrics(
            task_id="digits", run_id="run-1", launch=launch, round=1, metrics={"loss": loss}, at=utc_now()
        )
        open_runs.note_round(said, 1.0)
    journal.write(open_runs.take_batch())
    assert [row["metrics"] for row in journal.reader.list_rounds("run-1")] == [{"loss": 0.4}]


def test_the_rounds_of_an_unknown_run_are_not_written(journal: Journal) -> None:
    open_runs = OpenRuns([])
    open_runs.note_round(ServerMetrics(task_id="digits", run_id="stranger", round=1, at=utc_now()), 1.0)
    assert not open_runs.take_batch()


def numbers(**changes: object) -> ClientMetrics:
    known = ClientMetrics(
        kind=MetricsKind.ROUND, task_id="digits", client_mac=A, instance="i", run_id="run-1", values={}, at=utc_now()
    )
    return known.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "run_ids"),
    [
        ({}, ["run-1"]),
        ({"client_mac": B}, []),
        ({"task_id": "other"}, []),
        ({"run_id": "local-1"}, [None]),
        ({"run_id": None}, [None]),
    ],
)
def test_a_run_accepts_metrics_from_its_own_members_only(
    journal: Journal, changes: dict[str, object], run_ids: list[str | None]
) -> None:
    journal.add_run(JournaledRun(run=new_run(), secret=SECRET))
    open_runs = OpenRuns(journal.open_runs())
    open_runs.apply("run-1", [ClientChosen(A)], 1.0)
    open_runs.take_batch()
    open_runs.note_metrics(numbers(**changes), 2.0)
    assert [row["run_id"] for row in open_runs.take_batch().client_metrics] == run_ids


def test_a_server_of_another_task_adds_no_round_to_a_run(journal: Journal) -> None:
    journal.add_run(JournaledRun(run=new_run(), secret=SECRET))
    open_runs = OpenRuns(journal.open_runs())
    for task_id, round_ in (("digits", 1), ("other", 1), ("digits", 2**40)):  # a journal's round has 32 bits
        open_runs.note_round(ServerMetrics(task_id=task_id, run_id="run-1", round=round_, at=utc_now()), 1.0)
    assert len(open_runs.take_batch().rounds) == 1


def test_history_is_pruned_by_age_and_open_runs_never(journal: Journal) -> None:
    for run_id, is_over in (("old", True), ("open", False)):
        run = new_run(run_id)
        journal.add_run(JournaledRun(run=run, secret=SECRET))
        if is_over:
            closed = apply_all(run, [ClientChosen(A), RunClosed(RunOutcome.FAILED, "why")], 2000.0)
            journal.write(Batch(runs={run_id: (run, closed)}))
            journal.archive(run_id)
    open_runs = OpenRuns(journal.open_runs())
    open_runs.apply("open", [ClientChosen(A)], 1400.0)
    said = ClientMetrics(
        kind=MetricsKind.ROUND,
        task_id="digits",
        client_mac=A,
        instance="i",
        run_id="open",
        values={"x": 1},
        at=utc_now(),
    )
    open_runs.note_metrics(said, 5000.0)
    journal.write(open_runs.take_batch())
    assert journal.prune(runs_before=1999.0, events_before=0.0) == []
    assert journal.prune(runs_before=2001.0, events_before=1500.0) == ["old"]
    assert [run.run_id for run, _ in journal.reader.list_runs()[0]] == ["open"]
    assert journal.reader.list_events() == []
    assert [row["values"] for row in journal.reader.list_client_metrics("open", client_mac=A)] == [{"x": 1}]


def test_the_last_time_written_down_is_where_the_next_clock_goes_on(journal: Journal) -> None:
    assert journal.last_time() == 0.0
    journal.write(Batch(events=[JournalEvent(at=4_000_000_000.5, kind="Odd")]))
    assert journal.last_time() == 4_000_000_000.5


def test_a_launch_is_known_before_its_process_and_with_its_end(journal: Journal) -> None:
    journal.add_run(JournaledRun(run=new_run(), secret=SECRET))
    row = Launch(run_id="run-1", launch=1, log_path="/log", secret_file="/secret")
    journal.add_launch(row)
    journal.add_launch(row)
    assert journal.list_launches("run-1") == [row]
    journal.note_process("run-1", 1, pid=77, process_key="boot:5")
    journal.note_exit("run-1", 1, "exit 1")
    assert journal.list_launches("run-1") == [
        replace(row, pid=77, process_key="boot:5", exit_reason="exit 1"),
    ]


@pytest.mark.parametrize("url", ["nonsense", "oracle9://x", "sqlite+nodriver://"])
def test_a_database_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(JournalUrlError, match="an SQLAlchemy URL is wanted"):
        Journal(url)


def test_a_journal_is_opened_while_another_manager_stands_frozen_in_a_transaction(journal: Journal, url: str) -> None:
    with journal.engine.connect() as frozen:
        frozen.execute(text("UPDATE schema_version SET version = version"))
        with Journal(url) as standby:
            assert standby.open_runs() == []


async def test_a_read_that_comes_as_a_manager_ends_is_refused_in_a_sentence(journal: Journal) -> None:
    journal.reader.close()
    with pytest.raises(JournalAwayError, match="this manager ends; ask again"):
        await journal.reader.call(journal.reader.list_runs)
