"""The log of an FL server in parts, as `logs --follow` reads it while it is written."""

from collections.abc import Iterator
from pathlib import Path

from fedops_mqtt.cli.history import lines_of
from fedops_mqtt.manager.files import read_log


def test_a_character_that_is_written_by_half_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_bytes("caf\u00e9".encode()[:-1])
    text, end = read_log(path, 0)
    assert (text, end) == ("caf", 3)
    path.write_bytes("caf\u00e9\n".encode() + b"\xff\n")
    assert read_log(path, end) == ("\u00e9\n\ufffd\n", 8)
    assert read_log(path, 8) == ("", 8)


def test_a_line_that_comes_in_two_parts_is_one_record() -> None:
    def parts() -> Iterator[dict[str, object]]:
        for launch, text in [(1, "one\ntw"), (1, "o"), (1, "\nthree"), (2, "four\r\n")]:
            yield {"run_id": "r", "launch": launch, "text": text}

    found = [(each["launch"], each["line"]) for each in lines_of(parts())]
    assert found == [(1, "one"), (1, "two"), (1, "three"), (2, "four")]
