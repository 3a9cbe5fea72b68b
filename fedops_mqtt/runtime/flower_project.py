"""What a Flower project says of its apps: `[tool.flwr.app.config]` in the pyproject.toml beside them.

`flwr run` gives it to apps as `Context.run_config`, so apps count on it; here it is read where the app's code is.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any

from fedops_mqtt.runtime.key_values import Plain, flatten

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
