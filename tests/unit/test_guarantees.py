"""The pages on guarantees and limits are kept true: every test they name is there, every limit is as they say."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.runtime import settings

ROOT = Path(__file__).parents[2]
TABLES = {
    "Every process on the bus": settings.BusSettings,
    "Client": settings.ClientSettings,
    "Delivered apps (client)": settings.DeliveredAppSettings,
    "Run (manager)": RunLimits,
    "Manager": settings.ManagerSettings,
    "Published apps (manager)": settings.PublishSettings,
    "FL server": settings.ServerSettings,
    "Bridge": settings.BridgeSettings,
    "Verbs": settings.CliSettings,
}
COUNTED = {"max_launches", "max_attempts", "max_message_bytes"}
COUNTED |= {"app_max_bytes", "keep_apps", "app_keep_num", "app_keep_bytes", "app_keep_days", "app_install_max_bytes"}


def test_every_guarantee_names_tests_and_each_of_them_is_there() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    guarantees = re.split(r"^(?=## G-\d)", text, flags=re.MULTILINE)
    assert [part[3:6] for part in guarantees[1:]] == [f"G-{number}" for number in range(1, 9)]
    for part in guarantees:
        named = re.findall(r"`(tests/\S+?)::(\w+)`", part)
        assert named, part[:40]
        for path, name in named:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


@pytest.mark.parametrize("title", TABLES)
def test_every_limit_is_in_its_table_with_its_default(title: str) -> None:
    text = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    table = text.split(f"## {title}\n")[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", table, re.MULTILINE))
    own = TABLES[title].__annotations__
    fields = {name: field for name, field in TABLES[title].model_fields.items() if name in own}
    wanted = {name: field.default for name, field in fields.items() if name.endswith("_s") or name in COUNTED}
    assert {name: float(value) for name, value in shown.items()} == wanted


def test_there_is_one_table_of_limits() -> None:
    others = [path for path in [*ROOT.glob("docs/*.md"), ROOT / "README.md"] if path.name != "limits.md"]
    rows = {
        path.name: re.findall(r"^\| `\w+_s`[^|]*\| \d.*", path.read_text(encoding="utf-8"), re.MULTILINE)
        for path in others
    }
    assert {name: found for name, found in rows.items() if found} == {}


def test_every_fixed_limit_matches_its_table() -> None:
    table = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8").partition("## Fixed")[2]
    rows = re.findall(r"^\| `([\w.]+)\.(\w+)` \| (\S+) \|", table, re.MULTILINE)
    assert rows
    for module, name, value in rows:
        assert getattr(import_module(f"fedops_mqtt.{module}"), name) == float(value), f"{module}.{name}"
