"""A configuration in any form is read by attribute, and says what it lacks."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedops_mqtt.runtime.task_config import ConfigurationError, entry, flatten, nest, read_configuration


def test_a_yaml_file_and_a_dict_are_read_by_attribute(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("task_id: t\ndataset:\n  name: mnist\n  sizes: [1, {a: 2}]\n")
    for cfg in (read_configuration(str(path)), read_configuration(path)):
        assert (cfg.task_id, cfg.dataset.name, cfg["dataset"]["name"]) == ("t", "mnist", "mnist")
        assert cfg.dataset.sizes[1].a == 2
    assert read_configuration({"a": {"b": 1}}).a.b == 1


def test_what_is_read_by_attribute_already_stays_as_it_is() -> None:
    cfg = SimpleNamespace(task_id="t")
    assert read_configuration(cfg) is cfg


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"- 1\n", "holds list"),
        (b"a: [", "not YAML"),
        (b"a: ${b}\n", "OmegaConf"),
        (b"a: \xff", "not YAML"),
        (b"[" * 5000, "not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_reported(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigurationError, match=problem):
        read_configuration(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_configuration(tmp_path / "none.yaml")


def test_a_missing_entry_is_reported_with_the_existing_ones() -> None:
    with pytest.raises(AttributeError, match="no 'batch'; it has: task_id"):
        _ = read_configuration({"task_id": "t"}).batch


def test_flattened_and_nested_again_it_is_the_same() -> None:
    values = {"task_id": "t", "model": {"size": 3, "deep": {"er": 0.5}}}
    assert flatten(nest(flatten(values))) == flatten(values)
    assert entry(nest(flatten(values)), "model.deep.er") == 0.5
    assert entry(values, "model.none", 7) == 7
    assert pickle.loads(pickle.dumps(nest(flatten(values)))).model.size == 3
