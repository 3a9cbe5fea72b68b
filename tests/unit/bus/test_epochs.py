"""The file that keeps an epoch."""

import os
import stat
from pathlib import Path

import pytest

from fedops_mqtt.bus import EpochFile, EpochFileError


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = EpochFile(tmp_path / "new" / "folder" / "epoch")
    assert file.load() == 0
    file.save(17)
    assert EpochFile(file.path).load() == 17
    assert [entry.name for entry in file.path.parent.iterdir()] == ["epoch"]


BEYOND_ANY_CLOCK = 2**53 - 1


@pytest.mark.parametrize("content", [b"", b"soon", b"\xff\xfe", b"1.5", b"-3", b"%d" % BEYOND_ANY_CLOCK])
def test_a_broken_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    file = EpochFile(tmp_path / "epoch")
    file.path.write_bytes(content)
    assert file.load() == 0
    file.save(5)
    assert file.load() == 5


def test_a_save_syncs_the_file_before_the_rename_and_its_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not bring a lower epoch back: its owner would speak below what it has said."""
    file, done, sync = EpochFile(tmp_path / "epoch"), [], os.fsync

    def note_sync(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        done.append(("folder" if is_folder else "file", os.fstat(handle).st_size > 0, file.path.exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", note_sync)
    file.save(7)
    assert done == [("file", True, False), ("folder", True, True)]


def test_a_file_that_cannot_be_written_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "epoch").mkdir()
    with pytest.raises(EpochFileError, match="epoch"):
        EpochFile(tmp_path / "epoch").save(1)
