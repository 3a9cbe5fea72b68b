"""FedOps' names, parameters and JSON fields are all here; the page is made from the table that is tested."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest
from fedops_names import NAMES, WORDS, Name
from moving_page import MARK, PAGE, tables

from fedops_mqtt.client.client_utils import FLClientStatus


def find(row: Name) -> object:
    found: object = import_module(f"fedops_mqtt.{row.module}")
    for name in row.name.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("row", NAMES, ids=lambda row: f"{row.module}.{row.name}")
def test_a_name_of_fedops_is_here_and_takes_the_same_arguments(row: Name) -> None:
    found = find(row)
    assert callable(found)
    is_method = "." in row.name
    ours = list(inspect.signature(found).parameters.values())[is_method:]
    assert tuple(each.name for each in ours[: len(row.parameters)]) == row.parameters
    for each in ours[len(row.parameters) :]:
        variable = each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        assert variable or each.default is not each.empty, f"FedOps' callers do not give {each.name}"


def test_the_fields_of_fedops_status_are_here_in_its_order() -> None:
    fields = [word.name for word in WORDS if word.kind == "field"]
    assert list(FLClientStatus.model_fields) == fields
    assert FLClientStatus().model_dump() == {
        "task_id": "",
        "client_num": 0,
        "client_mac": "",
        "client_name": "",
        "client_online": True,
        "client_start": False,
        "client_fail": False,
        "server_IP": None,
        "gl_model": 0,
    }


def test_the_page_has_the_table() -> None:
    below = PAGE.read_text(encoding="utf-8").partition(MARK)[2]
    assert MARK + below == tables(), "run: python tests/unit/moving/moving_page.py"


def test_the_page_is_linked() -> None:
    assert "docs/moving-from-fedops.md" in (Path(PAGE).parents[1] / "README.md").read_text(encoding="utf-8")
