"""The settings file: TOML, one line a setting, named as in `settings`; paths in it are relative to it.

A name that is no setting is an error: a typing mistake must not leave open what its writer believes closed.
"""

import stat
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BeforeValidator, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

JOINED = BeforeValidator(lambda value: ",".join(map(str, value)) if isinstance(value, list) else value)
"""A setting that is a list in a file, and the same with commas elsewhere."""

_OTHERS_READ = stat.S_IRWXG | stat.S_IRWXO


class SettingsFileError(ValueError):
    """The settings file cannot be used."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"settings file {path}: {problem}")


class FileSource(PydanticBaseSettingsSource):
    """A settings file's values for one settings class; none without a file.

    Raises (on being asked):
        SettingsFileError: it cannot be read, is no TOML, or names what is no setting.
    """

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None, table: str | None) -> None:
        super().__init__(settings_cls)
        self._path = path
        self._table = table

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not asked for: `__call__` gives everything at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values for this class; other roles' settings in the same file are left alone."""
        if self._path is None:
            return {}
        values = read_settings_file(self._path, self.settings_cls)
        if self._table is not None:
            values = values.get(self._table, {})
        own = self.settings_cls.model_fields
        return {
            name: self._path.parent / value if is_path(own[name].annotation) and _is_relative(value) else value
            for name, value in values.items()
            if name in own and not isinstance(value, dict)
        }


def read_settings_file(path: Path, model: type[BaseSettings]) -> dict[str, Any]:
    """Return a settings file's values; `model` is any of the classes whose names it may hold.

    Raises:
        SettingsFileError: it cannot be read, is no TOML, or names what is no setting.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsFileError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsFileError(path, f"is not TOML: {error}") from error
    known = _known_settings(model)
    for table, names in ((None, values), *((name, value) for name, value in values.items() if isinstance(value, dict))):
        unknown = sorted(set(names) - known.get(table, set()))
        if unknown:
            where = f"in [{table}] " if table else ""
            raise SettingsFileError(
                path,
                f"{unknown[0]!r} {where}is no setting of any role (settings are the options of --help, with _ for -)",
            )
    return values


def exposed_files(settings: BaseSettings, path: Path | None) -> list[Path]:
    """Return which of the secret files that are in use others on this machine can read: settings file, keys."""
    fields = type(settings).model_fields
    keys = [getattr(settings, name) for name in fields if name.endswith("_key_file")]
    secret = [path] if path and _holds_secret(read_settings_file(path, type(settings)), fields) else []
    return [each for each in (*secret, *filter(None, keys)) if _others_read(each)]


def is_path(annotation: Any) -> bool:
    """Return whether a field holds a path."""
    kinds: Iterable[Any] = (annotation,)
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = get_args(annotation)
    return Path in kinds


def _is_relative(value: object) -> bool:
    return isinstance(value, str) and not value.startswith("~")


def _holds_secret(values: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> bool:
    return any(
        SecretStr in (fields[name].annotation, *get_args(fields[name].annotation)) for name in values if name in fields
    )


def _others_read(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & _OTHERS_READ)
    except OSError:
        return False  # opening it will raise the error


def _known_settings(model: type[BaseSettings]) -> dict[str | None, set[str]]:
    """Return the names that a settings file may hold, by table: those of every role, so that one file may serve two."""
    root = [each for each in model.__mro__ if issubclass(each, BaseSettings) and each is not BaseSettings][-1]
    known: dict[str | None, set[str]] = {None: set()}
    waiting = [root]
    while waiting:
        role = waiting.pop()
        waiting += role.__subclasses__()
        known.setdefault(getattr(role, "file_table", None), set()).update(role.model_fields)
    return known
