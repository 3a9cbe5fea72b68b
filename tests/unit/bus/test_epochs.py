"""The file that keeps an epoch."""

from pathlib import Path

import pytest

from fedops_mqtt.bus import EpochFile, EpochFileError


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = EpochFile(tmp_path / "new" / "folder" / "epoch")
    assert file.load() == 0
    file.save(17)
    assert EpochFile(file.path).load() == 17
    assert [entry.name for entry in file.path.parent.iterdir()] == ["epoch"]


@pytest.mark.parametrize("content", [b"", b"soon", b"\xff\xfe", b"1.5", b"-3"])
def test_a_broken_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    file = EpochFile(tmp_path / "epoch")
    file.path.write_bytes(content)
    assert file.load() == 0
    file.save(5)
    assert file.load() == 5


def test_a_file_that_cannot_be_written_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "epoch").mkdir()
    with pytest.raises(EpochFileError, match="epoch"):
        EpochFile(tmp_path / "epoch").save(1)
