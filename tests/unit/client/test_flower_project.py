"""An app's project is found where its code is, and its configuration read as Flower reads it."""

import importlib.util
import sys
from pathlib import Path

import pytest

from fedops_mqtt.runtime.key_values import ProjectError, module_of, project_config


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a package in it whose `app` module is imported; the project's folder."""
    source = tmp_path / "a_flower_project" / "app.py"
    source.parent.mkdir()
    source.touch()
    spec = importlib.util.spec_from_file_location("a_flower_project.app", source)
    assert spec is not None
    monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
    return tmp_path


def test_the_projects_configuration_is_that_of_the_file_above_the_module(package: Path) -> None:
    (package / "pyproject.toml").write_text("[tool.flwr.app.config]\nlocal-epochs = 2\n[tool.flwr.app.config.a]\nb=1\n")
    assert project_config("a_flower_project.app") == {"local-epochs": 2, "a.b": 1}


@pytest.mark.parametrize("content", ["", "[tool.flwr]\n", "[project]\nname = 'x'\n"])
def test_a_project_without_settings_configures_nothing(package: Path, content: str) -> None:
    (package / "pyproject.toml").write_text(content)
    assert project_config("a_flower_project.app") == {}


@pytest.mark.parametrize("content", ["[tool", "tool = 1\n", "[tool.flwr.app.config]\nlayers = [1]\n"])
def test_a_project_that_cannot_be_used_is_named(package: Path, content: str) -> None:
    (package / "pyproject.toml").write_text(content)
    with pytest.raises(ProjectError, match=r"pyproject\.toml"):
        project_config("a_flower_project.app")


def test_a_module_that_is_not_there_is_in_no_project() -> None:
    assert project_config("there.is_no_such_module") == {}


def test_an_app_that_a_script_has_imported_is_in_its_own_project(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = object()
    monkeypatch.setattr(sys.modules["__main__"], "app", app, raising=False)
    assert module_of(app) == "__main__"
    monkeypatch.setattr(sys.modules["a_flower_project.app"], "server_app", app, raising=False)
    assert module_of(app) == "a_flower_project.app"
    assert module_of(object()) == "__main__"
