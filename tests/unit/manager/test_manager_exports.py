"""Exports of a run: one table whatever the pages were, never more than a page in memory, and not in the manager."""

import csv
import io
from collections.abc import Iterator
from contextlib import aclosing

import psutil
import pytest

from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.manager import export
from fedops_mqtt.manager.errors import JournalAwayError
from fedops_mqtt.manager.export import Export, Exporter, journal_table
from fedops_mqtt.manager.journal import Batch, Journal, JournaledRun

A = "02:00:00:00:00:01"


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    with Journal(database_url) as opened:
        yield opened


def a_run(run_id: str) -> Run:
    return Run(spec=RunSpec(run_id=run_id, task_id="digits", num_rounds=1, min_clients=1), created_at=1.0)


def measured(run_id: str, number: int, **values: object) -> dict[str, object]:
    who = {"run_id": run_id, "task_id": "digits", "client_mac": A, "kind": "round"}
    return {**who, "round": number, "values": values, "at": 1000.0 + number}


def test_an_export_has_one_head_and_every_row_of_its_run_in_order(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "EXPORT_PAGE", 2)
    for run_id in ("run-1", "run-2"):
        journal.add_run(JournaledRun(run=a_run(run_id), secret=b""))
    rows = [measured("run-1", number, loss=number / 2) for number in range(3)]
    rows += [measured("run-2", 9, other=1), measured("run-1", 3, **{"=a,b": "=1", 'q"': None}), measured("run-1", 4)]
    journal.write(Batch(client_metrics=rows))
    parts = list(journal_table(journal.reader, "run-1", Export.METRICS))
    assert len(parts) > 3
    found = list(csv.DictReader(io.StringIO("".join(parts))))
    assert [(row["round"], row["values.loss"]) for row in found] == [
        ("0", "0.0"),
        ("1", "0.5"),
        ("2", "1.0"),
        ("3", ""),
        ("4", ""),
    ]
    assert found[3]["values.=a,b"] == "'=1"
    assert "values.other" not in found[0], "another run's"


def test_what_is_written_while_an_export_goes_on_is_left_out(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "EXPORT_PAGE", 1)
    journal.add_run(JournaledRun(run=a_run("run-1"), secret=b""))
    journal.write(Batch(client_metrics=[measured("run-1", number, loss=1.0) for number in range(2)]))
    parts = journal_table(journal.reader, "run-1", Export.METRICS)
    first = next(parts)
    journal.write(Batch(client_metrics=[measured("run-1", 2, new_name=1.0)]))
    assert len(list(csv.DictReader(io.StringIO(first + "".join(parts))))) == 2


def test_a_run_without_numbers_is_a_head_without_rows(journal: Journal) -> None:
    journal.add_run(JournaledRun(run=a_run("run-1"), secret=b""))
    text = "".join(journal_table(journal.reader, "run-1", Export.METRICS))
    assert text == "id,at,run_id,task_id,client_mac,kind,round\r\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", " =1", "\n=1", "\t=1", "\r=1", "＝1", "\x1b]0;owned\x07=1"])
def test_a_formula_is_quoted_and_control_characters_are_shown_in_cells_and_heads(journal: Journal, text: str) -> None:
    journal.add_run(JournaledRun(run=a_run("run-1"), secret=b""))
    journal.write(Batch(client_metrics=[measured("run-1", 0, **{text: text})]))
    written = "".join(journal_table(journal.reader, "run-1", Export.METRICS))
    head, cells = csv.reader(io.StringIO(written))
    assert not cells[-1].lstrip().startswith(("=", "+", "-", "@", "＝"))
    for cell in (head[-1], cells[-1]):
        assert cell.replace("\n", "").replace("\t", "").isprintable()


async def test_a_process_of_its_own_writes_the_same_table(journal: Journal) -> None:
    journal.add_run(JournaledRun(run=a_run("run-1"), secret=b""))
    journal.write(Batch(client_metrics=[measured("run-1", number, loss=0.5) for number in range(2)]))
    parts = [part async for part in Exporter(journal.url).parts("run-1", Export.METRICS)]
    assert b"".join(parts).decode() == "".join(journal_table(journal.reader, "run-1", Export.METRICS))


async def test_a_download_that_breaks_off_leaves_no_process(journal: Journal) -> None:
    journal.add_run(JournaledRun(run=a_run("run-1"), secret=b""))
    journal.write(Batch(client_metrics=[measured("run-1", number, text="x" * 100) for number in range(5000)]))
    async with aclosing(Exporter(journal.url).parts("run-1", Export.METRICS)) as parts:
        await anext(parts)
        (child,) = [each for each in psutil.Process().children() if "fedops_mqtt.manager.export" in each.cmdline()]
    assert not child.is_running()


async def test_a_database_that_cannot_be_read_is_reported_before_any_part() -> None:
    with pytest.raises(JournalAwayError, match="no such table"):
        await anext(Exporter("sqlite:///:memory:").parts("run-1", Export.METRICS))
