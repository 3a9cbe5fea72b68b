"""Text that other programs wrote, made fit to be sent and to be shown: bounded, valid Unicode, one form for errors.

Nothing here raises, whatever the text or the error is.
"""

import traceback
from typing import overload

from fedops_mqtt.protocol.identity import MAX_REASON_CHARS

TRACEBACK_LINES = 20
_MAX_HEAD_CHARS = 1500
_MAX_FRAME_CHARS = 200
"""Of one line of a traceback: generated code may stand on a line of megabytes."""
_CUT = " … "


@overload
def clip(text: str, max_chars: int = ...) -> str: ...
@overload
def clip(text: str | None, max_chars: int = ...) -> str | None: ...
def clip(text: str | None, max_chars: int = MAX_REASON_CHARS) -> str | None:
    """Return `text` in at most `max_chars`: a long one loses its middle; lone surrogates and NUL become escapes.

    JSON and UTF-8 have no place for the one, PostgreSQL for the other.
    """
    if text is None:
        return None
    text = _cut(text, max_chars).encode(errors="backslashreplace").decode().replace("\0", r"\x00")
    return _cut(text, max_chars)  # an escape is longer than what it stands for


def visible(text: str, *, keep: str = "") -> str:
    r"""Return `text` with every control and format character but those in `keep` as its escape (`\x1b`).

    A terminal obeys escape sequences and a page the characters that reverse the direction of text: whoever chooses a
    name must not choose what is displayed around it.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def first_line(text: str | None) -> str:
    """Return the most telling line of a reason: of a bare traceback the last, of anything else the first."""
    lines = [line for line in (text or "").splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def name_error(error: BaseException) -> str:
    """Return `Type: text` of an error, bounded; of a long text the beginning and the end."""
    try:
        text = str(error)
    except Exception as failure:  # the text of a user's exception is the user's code
        text = f"its text raised {type(failure).__name__}"
    return clip(f"{type(error).__name__}: {text}", _MAX_HEAD_CHARS)


def describe_error(error: BaseException, head: str | None = None) -> str:
    """Return `head` (default: `name_error`), and below it the last lines of the traceback; it fits into a reason."""
    frames = "".join(traceback.format_tb(error.__traceback__)).splitlines()[-TRACEBACK_LINES:]
    lines = "\n".join(clip(line, _MAX_FRAME_CHARS) for line in frames)
    head = name_error(error) if head is None else clip(head, _MAX_HEAD_CHARS)
    return f"{head}\n{clip(lines, MAX_REASON_CHARS - len(head) - 1)}".rstrip()


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    num_kept = max(0, max_chars - len(_CUT))
    end = num_kept // 2
    return f"{text[: num_kept - end]}{_CUT}{text[len(text) - end :]}"[:max_chars]
