"""Text of others: bounded, valid Unicode, and nothing in it that a terminal obeys."""

from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.protocol import MAX_REASON_CHARS, clip, describe_error, first_line, name_error, visible

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""Lone surrogates and control characters too."""


@given(ANY_TEXT, st.integers(0, 40))
def test_a_clipped_text_fits_and_is_unicode(text: str, max_chars: int) -> None:
    clipped = clip(text, max_chars)
    assert len(clipped) <= max_chars
    clipped.encode()
    assert "\0" not in clipped


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40))
def test_a_text_that_fits_stays_as_it_is(text: str) -> None:
    assert clip(text, 40) == text
    assert clip(None) is None


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    clipped = clip("begin " + "x" * 200_000 + " end")
    assert len(clipped) <= MAX_REASON_CHARS
    assert clipped.startswith("begin x")
    assert clipped.endswith("x end")


@given(ANY_TEXT)
def test_what_is_shown_has_no_control_characters(text: str) -> None:
    assert visible(text).isprintable()
    assert visible(text, keep="\n\t").replace("\n", "").replace("\t", "").isprintable()
    assert visible(visible(text)) == visible(text)


def test_control_characters_are_shown() -> None:
    assert visible("a\x1b[31mb\r\n\u202ec\ud800\x9b") == r"a\x1b[31mb\r\n\u202ec\ud800\x9b"
    assert visible("Küche 1, 日本") == "Küche 1, 日本"


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@given(ANY_TEXT)
def test_an_error_is_named_whatever_its_text_is(text: str) -> None:
    name_error(ValueError(text)).encode()
    assert name_error(ValueError("\ud800 x")) == r"ValueError: \ud800 x"
    assert name_error(SilentError()) == "SilentError: its text raised RuntimeError"


def raised(error: Exception, depth: int = 0) -> Exception:
    try:
        if depth:
            raise raised(error, depth - 1)
        raise error
    except Exception as found:
        return found


def test_a_described_error_has_type_text_and_the_last_lines_of_its_traceback() -> None:
    try:
        {}["weights"]  # type: ignore[index]
    except KeyError as error:
        head, *lines = describe_error(error).splitlines()
    assert head == "KeyError: 'weights'"
    assert lines[-2].strip() == '{}["weights"]  # type: ignore[index]'
    assert len(lines) <= 20


def test_a_described_error_fits_into_a_reason_and_keeps_both_ends() -> None:
    for text in ("begin " + "x" * 200_000 + " end", "begin\n" + "\ud800" * 200_000 + "\n end"):
        said = describe_error(raised(ValueError(text), depth=100))
        assert len(said) <= MAX_REASON_CHARS
        said.encode()
        assert said.startswith("ValueError: begin")
        assert " end" in said
        assert "raise raised(error, depth - 1)" in said


def test_the_summary_line_of_a_reason() -> None:
    assert first_line("KeyError: 'x'\n  File a\n    b") == "KeyError: 'x'"
    assert first_line("Traceback (most recent call last):\n  File a\nKeyError: 'x'\n") == "KeyError: 'x'"
    assert first_line(None) == first_line(" \n") == ""
