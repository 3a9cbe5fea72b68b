"""The journal: what was saved is there after a crash, and nothing else is believed."""

import logging
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.core.client_state import ActiveTraining, ClientState, StopRecord, TrainingOutcome, TriggerReply
from fedops_mqtt.device.journal import ClientJournal, DaemonRunningError, identity_dir, identity_lock
from fedops_mqtt.protocol import Answer, IdentityError, LastRun, LastTrigger, Outcome

MAC = "02:00:00:00:00:01"
FACTS = ClientState(
    term=3, active_training=ActiveTraining(run_id="r", attempt=1, launch=1, server_ip="h:1", is_local=False)
)


def test_facts_come_back_as_they_were_saved(tmp_path: Path) -> None:
    journal = ClientJournal(tmp_path / "deep" / "er")
    assert journal.load() == ClientState()
    journal.save(FACTS)
    assert ClientJournal(journal.folder).load() == FACTS
    assert [path.name for path in journal.folder.iterdir()] == ["journal.json"]


def test_a_journal_of_an_earlier_program_is_read_under_the_names_of_today(tmp_path: Path) -> None:
    ClientJournal(tmp_path).save(replace(FACTS, stop_records=(StopRecord(run_id="s", attempt=2),)))
    path = tmp_path / "journal.json"
    written = path.read_text()
    path.write_text(written.replace('"active_training"', '"in_hand"').replace('"stop_records"', '"tombstones"'))
    assert path.read_text() != written
    assert ClientJournal(tmp_path).load() == replace(FACTS, stop_records=(StopRecord(run_id="s", attempt=2),))


def test_a_journal_without_reason_codes_or_with_those_of_a_newer_program_is_read(tmp_path: Path) -> None:
    ending = TrainingOutcome(outcome=Outcome.FAILED, reason="interrupted", detail="interrupted: why")
    assert FACTS.active_training is not None
    before = replace(
        FACTS,
        answers=(TriggerReply(run_id="r", attempt=1, launch=1, answer=Answer.REJECTED, reason="busy with run x"),),
        active_training=replace(FACTS.active_training, ending=ending),
        last_run=LastRun(run_id="q", attempt=1, outcome=Outcome.FAILED, reason="interrupted: why"),
        last_trigger=LastTrigger(run_id="r", attempt=1, launch=1, answer=Answer.REJECTED, reason="busy with run x"),
    )
    ClientJournal(tmp_path).save(before)
    path = tmp_path / "journal.json"
    written = path.read_text()
    for code in ("", '"reason_code":"of-a-newer-program",'):
        path.write_text(written.replace('"reason_code":null,', code).replace(',"reason_code":null', ""))
        assert path.read_text() != written
        assert ClientJournal(tmp_path).load() == before


def test_the_same_facts_are_not_written_again(tmp_path: Path) -> None:
    journal = ClientJournal(tmp_path)
    journal.save(FACTS)
    (tmp_path / "journal.json").unlink()
    journal.save(FACTS)
    assert not (tmp_path / "journal.json").exists()
    journal.save(replace(FACTS, term=4))
    assert (tmp_path / "journal.json").exists()


def _is_no_object(content: bytes) -> bool:
    return not content.strip().startswith(b"{")  # `{}` is a journal: every fact has a default


@given(content=st.binary(max_size=200).filter(_is_no_object))
def test_a_corrupt_journal_is_reported_and_set_aside(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("journal")
    (folder / "journal.json").write_bytes(content)
    journal = ClientJournal(folder)
    assert journal.load() == ClientState()
    assert (folder / "journal.corrupt").read_bytes() == content
    journal.save(FACTS)
    assert ClientJournal(folder).load() == FACTS


def test_a_corrupt_journal_is_reported_with_its_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "journal.json").write_bytes(b'{"term": "many"}')
    with caplog.at_level(logging.WARNING):
        assert ClientJournal(tmp_path).load() == ClientState()
    assert [record.__dict__["path"] for record in caplog.records] == [str(tmp_path / "journal.json")]


@given(task_id=st.text(max_size=80) | st.sampled_from(["..", ".", "../../etc", "a/b", "a+b", "a\x00", ""]))
def test_no_task_id_leads_out_of_the_state_folder(task_id: str) -> None:
    try:
        folder = identity_dir(Path("/state"), task_id, MAC)
    except IdentityError:
        return
    assert Path(os.path.normpath(folder)).parent == Path("/state/clients/02-00-00-00-00-01")


def test_two_daemons_of_one_identity_on_a_machine_are_distinguished(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fedops_mqtt.device.journal import identity_lock\n"
        f"with identity_lock(Path({str(tmp_path)!r}), task_id='t', client_mac={MAC!r}):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(DaemonRunningError, match=f"process {other.pid} already serves task t"),
            identity_lock(tmp_path, task_id="t", client_mac=MAC),
        ):
            pytest.fail("two hold one lock")
        other.kill()
    with identity_lock(tmp_path, task_id="t", client_mac=MAC):
        pass


def test_a_save_syncs_the_file_before_the_rename_and_its_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves the old facts or the new ones, and the new ones once `save` has returned."""
    journal, done = ClientJournal(tmp_path), []
    sync, replace_file = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        done.append("sync of the folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync of the file")
        sync(handle)

    def note_replace(source: str, target: Path) -> None:
        done.append("replace")
        replace_file(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    journal.save(FACTS)
    assert done == ["sync of the file", "replace", "sync of the folder"]
