"""Streams of a process that nobody vouches for."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.runtime import processes
from fedops_mqtt.runtime.processes import MAX_OUTPUTS, LineSplitter, OutputFile, Tail, find_outputs, read_output


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_lines_do_not_depend_on_where_a_chunk_ends(content: bytes, cuts: list[int]) -> None:
    ends = [*sorted(cuts), len(content)]
    splitter = LineSplitter(20)
    chunks = [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    whole = content.split(b"\n")[:-1]
    assert lines == [line for line in whole if len(line) <= 20]
    assert splitter.num_dropped == len(whole) - len(lines)


def test_a_line_that_never_ends_takes_no_memory_and_spares_the_next() -> None:
    splitter = LineSplitter(100)
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 10_000)) == []
        assert len(splitter._rest) <= 100
    assert list(splitter.feed(b"\nok\n")) == [b"ok"]
    assert splitter.num_dropped == 1


def test_a_tail_keeps_the_last_lines_within_its_bytes() -> None:
    tail = Tail(max_lines=3, max_bytes=100)
    for number in range(1000):
        tail.feed(b"line %d\r\n\n" % number)
    assert tail.text == "line 997\nline 998\nline 999"
    tail.feed(b"y" * 10_000)
    assert tail.text == "y" * 100


def test_a_tail_is_text_without_control_characters() -> None:
    tail = Tail(max_lines=3, max_bytes=100)
    tail.feed(b"\x1b[31mred\x1b[0m \xff\x00end")
    assert tail.text == "[31mred[0m \N{REPLACEMENT CHARACTER}end"


def test_output_is_kept_whole_in_a_file_that_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_OUTPUT_BYTES", 100)
    output = OutputFile(tmp_path, "r1-1")
    output.begin()
    for number in range(100):
        output.write(b"line %d\n" % number)
    lines = b"".join(read_output(output.path)).split()
    assert lines[-2:] == [b"line", b"99"]
    assert 100 <= sum(path.stat().st_size for path in output.path.parent.iterdir()) <= 220
    assert output.path.stat().st_mode & 0o077 == 0


def test_the_output_of_the_newest_trainings_is_kept(tmp_path: Path) -> None:
    for number in range(MAX_OUTPUTS + 3):
        output = OutputFile(tmp_path, f"r{number}-1")
        output.begin()
        output.write(b"x")
        os.utime(output.path, (number, number))
    found = find_outputs(output.path.parent)
    assert [path.stem for path in found] == [f"r{number}-1" for number in range(MAX_OUTPUTS + 2, 2, -1)]


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trainings").write_text("a file in its place")
    output = OutputFile(tmp_path, "r1-1")
    output.begin()
    for _ in range(3):
        output.write(b"x")
    assert len(caplog.records) == 1


def test_a_clock_that_is_set_back_does_not_make_the_newest_training_the_oldest(tmp_path: Path) -> None:
    in_a_year = time.time() + 365 * 86400
    for number in range(MAX_OUTPUTS):
        output = OutputFile(tmp_path, f"r{number}-1")
        output.begin()
        os.utime(output.path, (in_a_year + number, in_a_year + number))
    for number in range(MAX_OUTPUTS, MAX_OUTPUTS + 3):
        output = OutputFile(tmp_path, f"r{number}-1")
        output.begin()
        output.write(b"x")
    found = find_outputs(output.path.parent)
    assert [path.stem for path in found] == [f"r{number}-1" for number in range(MAX_OUTPUTS + 2, 2, -1)]
