"""The examples in the API's OpenAPI are valid for their models."""

import json
from pathlib import Path

import pytest

from fedops_mqtt.manager.api import app_models, models

EXAMPLES = json.loads(Path(models.__file__).with_name("examples.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_valid_for_its_model_and_complete(name: str) -> None:
    model = getattr(models, name, None) or getattr(app_models, name)
    assert model.model_validate(EXAMPLES[name])
    assert EXAMPLES[name].keys() <= model.model_fields.keys()
