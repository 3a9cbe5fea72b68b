"""A task's configuration in any of the forms that people have it in: Hydra's, a mapping, objects, a YAML file.

What comes in as a mapping or a file is read by attribute too (`cfg.dataset.name`), as FedOps' programs do.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedops_mqtt.protocol import number_of

Scalar = bool | int | float | str | None

_MAX_DEPTH = 8
_INTERPOLATION = "${"


class ConfigurationError(ValueError):
    """A configuration cannot be used as it is."""


class Configuration(Mapping[str, Any]):
    """A mapping whose entries are attributes too, as those of an OmegaConf node are."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {str(name): _wrap(value) for name, value in values.items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(f"the configuration has no {name!r}; it has: {', '.join(values) or 'nothing'}")
        return values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Configuration({self._values!r})"


def read_configuration(cfg: Any) -> Any:
    """Return a configuration by attribute: a YAML file's path or a plain dict is wrapped, anything else is as it was.

    Raises:
        ConfigurationError: the file cannot be read, is no YAML mapping, or needs OmegaConf.
    """
    if isinstance(cfg, str | Path):
        return Configuration(_read_yaml(Path(cfg)))
    return Configuration(cfg) if isinstance(cfg, dict) else cfg


def nest(values: Mapping[str, Any]) -> Configuration:
    """Return the configuration that `flatten` gave `values` for, without what it left out."""
    root: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        inside: dict[str, Any] = root
        for part in path:
            step = inside.setdefault(part, {})
            inside = step if isinstance(step, dict) else {}
        inside[last] = value
    return Configuration(root)


def flatten(cfg: Any) -> dict[str, Scalar]:
    """Return the scalars of a configuration by their dotted names; what is neither scalar nor nested is left out."""
    return dict(_scalars(cfg, "", 0))


def entry(cfg: Any, path: str, default: Any = None) -> Any:
    """Return what stands under a dotted name; `default` where nothing does."""
    for name in path.split("."):
        cfg = cfg.get(name) if callable(getattr(cfg, "get", None)) else getattr(cfg, name, None)
        if cfg is None:
            return default
    return cfg


def _wrap(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Configuration(value)
    if isinstance(value, list | tuple):
        return [_wrap(each) for each in value]
    return value


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
        values = yaml.safe_load(text)
    except OSError as error:
        raise ConfigurationError(f"configuration {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"configuration {path} is not YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"configuration {path} holds {type(values).__name__}, expected names with values")
    if _INTERPOLATION in text:
        raise ConfigurationError(
            f"configuration {path} has ${{…}} in it: load it with OmegaConf, and pass what it gives"
        )
    return values


def _scalars(cfg: Any, prefix: str, depth: int) -> Iterator[tuple[str, Scalar]]:
    if depth > _MAX_DEPTH:
        return
    for name, value in _items(cfg):
        if value is None or isinstance(value, bool | int | float | str):
            yield f"{prefix}{name}", value
        elif (number := number_of(value)) is not None:
            yield f"{prefix}{name}", number
        elif not isinstance(value, Sequence | bytes) and not callable(value):
            yield from _scalars(value, f"{prefix}{name}.", depth + 1)


def _items(cfg: Any) -> list[tuple[str, Any]]:
    if isinstance(cfg, Mapping) or callable(getattr(cfg, "items", None)):
        return [(str(name), value) for name, value in cfg.items()]
    return [(name, value) for name, value in getattr(cfg, "__dict__", {}).items() if not name.startswith("_")]
