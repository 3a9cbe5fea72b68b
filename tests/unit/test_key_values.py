"""The one line that configures an app, and the tables of a project's file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.runtime.key_values import Plain, flatten, format_pairs, parse_pairs


def test_pairs_are_read_as_flowers_commands_take_them() -> None:
    line = """partition-id=0 parts = 2  data-path="/a b/c" lr=1e-3 model.name='x' is_on=true text="a\\"b" """
    assert parse_pairs(line) == {
        "partition-id": 0,
        "parts": 2,
        "data-path": "/a b/c",
        "lr": 0.001,
        "model.name": "x",
        "is_on": True,
        "text": 'a"b',
    }
    assert parse_pairs("  ") == {}


@pytest.mark.parametrize("line", ["a", "a=", "=1", "a=b", "a=1,b=2", "a=[1]", "a=1 b", 'a="open', "a=1979-05-27"])
def test_an_invalid_pair_is_reported_with_what_to_write(line: str) -> None:
    with pytest.raises(ValueError, match=r"key=value|TOML|boolean"):
        parse_pairs(line)


@pytest.mark.parametrize("line", ["a=nan", "a=-inf", "a=1e400"])
def test_what_no_message_can_carry_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        parse_pairs(line)


def test_tables_become_dotted_keys() -> None:
    assert flatten({"lr": 0.1, "model": {"name": "cnn", "size": {"x": 3}}}) == {
        "lr": 0.1,
        "model.name": "cnn",
        "model.size.x": 3,
    }
    with pytest.raises(ValueError, match="layers is list"):
        flatten({"model": {"layers": [1, 2]}})


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True),
        st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        max_size=5,
    )
)
def test_a_line_that_is_written_is_read_as_the_same_values(values: dict[str, Plain]) -> None:
    read = parse_pairs(format_pairs(values))
    assert [(key, type(value), value) for key, value in read.items()] == [
        (key, type(value), value) for key, value in values.items()
    ]


@pytest.mark.parametrize("values", [{"a b": 1}, {"": 1}, {"a=b": 1}, {"a": "\ud800"}], ids=ascii)
def test_values_that_no_line_can_hold_are_refused(values: dict[str, Plain]) -> None:
    with pytest.raises(ValueError, match=r"."):
        format_pairs(values)
