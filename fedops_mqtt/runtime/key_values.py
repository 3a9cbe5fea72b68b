"""Settings of an app in one line, as Flower's commands take them: `partition-id=0 data-path="/data" lr=0.1`.

Each value is TOML: true, 3, 0.5, "text". Anything else is an error.
"""

import json
import math
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

Plain = bool | int | float | str

NUM_ROUNDS_KEY = "num-server-rounds"
"""What Flower's own project templates call the number of rounds in an app's configuration."""

_PAIR = re.compile(r"""\s*([A-Za-z0-9_.-]+)\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']+)(?=\s|$)""")


def parse_pairs(text: str) -> dict[str, Plain]:
    """Return the values by key; a dotted key stays as it is.

    Raises:
        ValueError: a part of the text is no `key=value`.
    """
    found: dict[str, Plain] = {}
    at = 0
    while text[at:].strip():
        match = _PAIR.match(text, at)
        if match is None:
            raise ValueError(f'{text[at:].strip()!r} is not key=value; a text needs quotes: key="value"')
        found[match[1]] = _value(match[1], match[2])
        at = match.end()
    return found


def format_pairs(values: Mapping[str, Plain]) -> str:
    """Return the line that `parse_pairs` reads as these values, types included.

    Raises:
        ValueError: a key or a value has no such form.
    """
    text = " ".join(f"{key}={_literal(value)}" for key, value in values.items())
    if parse_pairs(text) != dict(values):
        raise ValueError(f"{', '.join(values)[:200]}: a key is letters, digits, '.', '_' and '-'; a text is Unicode")
    return text


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Plain]:
    """Return nested tables as dotted keys, as Flower does with a project's configuration.

    Raises:
        ValueError: a value is neither a table nor a boolean, number or text.
    """
    flat: dict[str, Plain] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Plain):
            flat[prefix + key] = value
        else:
            raise ValueError(f"{prefix}{key} is {type(value).__name__}, not a boolean, number or text")
    return flat


def _literal(value: Plain) -> str:
    if isinstance(value, str):
        value.encode()  # a lone surrogate is no Unicode text
        # a JSON string is a TOML one, but for DEL, which TOML wants as an escape
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()


def _value(key: str, text: str) -> Plain:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f'{key}={text} is no TOML value; a text needs quotes: {key}="{text}"') from error
    if not isinstance(value, Plain):
        raise ValueError(f"{key}={text} is not a boolean, number or text")
    if isinstance(value, float) and not math.isfinite(value):  # no message carries it: JSON has none
        raise ValueError(f"{key}={text} is not a finite number")
    return value


def _check(text: str) -> str:
    parse_pairs(text)
    return text


KeyValues = Annotated[str, AfterValidator(_check)]
"""A line that `parse_pairs` understands."""


_FILE = "pyproject.toml"


class ProjectError(Exception):
    """A project's configuration cannot be used."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")


def project_config(module_name: str) -> dict[str, Plain]:
    """Return the configuration of the project that an imported module is in; empty where it is in none.

    Raises:
        ProjectError: the project's file is no TOML, or has values that an app cannot be given.
    """
    source = getattr(sys.modules.get(module_name), "__file__", None)
    path = None if source is None else _find(Path(source).resolve().parent)
    if path is None:
        return {}
    try:
        found: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        for name in ("tool", "flwr", "app", "config"):
            found = found.get(name, {})
        return flatten(found)
    except (OSError, ValueError, AttributeError) as error:
        raise ProjectError(path, str(error)) from error


def module_of(app: object) -> str:
    """Return the module that an app stands in: another than the script that was started, where one has it too."""
    script = sys.modules["__main__"]
    others = ((name, module) for name, module in list(sys.modules.items()) if module is not script)
    return next((name for name, module in others if any(each is app for each in _values(module))), "__main__")


def _values(module: object) -> list[object]:
    return list(vars(module).values()) if hasattr(module, "__dict__") else []


def _find(folder: Path) -> Path | None:
    """Return the nearest project file, in this folder or above; a package's folders have none of their own."""
    return next((path for each in (folder, *folder.parents) if (path := each / _FILE).is_file()), None)
