"""Libraries: each one that the package imports is declared once; a missing optional one is named with its command."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from fedops_mqtt.runtime.extras import EXTRAS, how_to_install
from fedops_mqtt.server.server_utils import aws_session

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = [path.read_text(encoding="utf-8") for path in (ROOT / "fedops_mqtt").rglob("*.py")]

BROUGHT = {
    "click": "typer",
    "grpc": "flwr",
    "paho": "aiomqtt",
    "pydantic_core": "pydantic",
    "starlette": "fastapi",
    "urllib3": "kubernetes",
}
"""Imported, and a part of what the library beside it is: that one's range holds."""

WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None  # Python's own way to make an import fail
sys.argv = ["fedops-mqtt", *sys.argv[2:]]
from fedops_mqtt.cli import main
main()
"""

VERBS = {
    "fsspec": ["model", "list", "digits", "--store", "s3://bucket/models"],
    "s3fs": ["model", "list", "digits", "--store", "s3://bucket/models"],
    "psycopg": ["manager", "--broker", "mqtt://127.0.0.1:1", "--http", "127.0.0.1:0"],
}


def distribution_of(requirement: str) -> str:
    return re.split(r"[\[<>=~! ]", requirement)[0].lower().replace("_", "-")


def imported() -> set[str]:
    names: set[str] = set()
    for node in (node for source in SOURCES for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"fedops_mqtt"}


def test_what_is_imported_is_declared() -> None:
    declared = {distribution_of(each) for each in PROJECT["dependencies"]}
    where = packages_distributions()
    unknown = {
        name
        for name in {BROUGHT.get(name, name) for name in imported()} - EXTRAS.keys()
        if not declared & {distribution_of(each) for each in where.get(name, [])}
    }
    assert not unknown, "declare it, or add it to an extra and to EXTRAS"


def test_what_is_declared_is_used_and_named_once() -> None:
    named = [distribution_of(each) for each in PROJECT["dependencies"]]
    assert len(named) == len(set(named))
    where = packages_distributions()
    found = {distribution_of(each) for name in imported() for each in where.get(name, [])}
    text = "\n".join(SOURCES)
    assert not [each for each in named if each not in found and each not in text]


def test_what_an_extra_brings_is_named_once() -> None:
    named = [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
    libraries = [distribution_of(each) for each in named if distribution_of(each) != PROJECT["name"]]
    assert len(libraries) == len(set(libraries))


@pytest.mark.parametrize("library", EXTRAS)
def test_the_command_for_a_library_names_an_extra_that_exists(library: str) -> None:
    sentence = how_to_install(ModuleNotFoundError(f"No module named {library!r}", name=f"{library}.inner"))
    extra = re.fullmatch(rf"'{library}' is not installed: pip install 'fedops-mqtt\[(\w+)\]'", sentence)
    assert extra is not None
    assert extra[1] in PROJECT["optional-dependencies"]


def test_a_library_of_the_users_own_has_no_extra() -> None:
    assert how_to_install(ModuleNotFoundError("No module named 'pandas'", name="pandas")) == "'pandas' is not installed"


def test_fedops_session_without_its_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'fedops-mqtt[s3]'")):
        aws_session()


@pytest.mark.parametrize("library", VERBS)
def test_a_verb_whose_library_is_missing_prints_the_command(library: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "FEDOPS_MQTT_STATE_DIR": str(tmp_path),
        "FEDOPS_MQTT_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none",
    }
    command = [sys.executable, "-c", WITHOUT, library, *VERBS[library]]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode in (1, 78)
    assert f"'{library}' is not installed: pip install 'fedops-mqtt[{EXTRAS[library]}]'" in ended.stderr
    assert "Traceback" not in ended.stderr
