"""The threat table names tests that are there, and roles as the code has them."""

import re
from pathlib import Path

from fedops_mqtt.enrolment import Role

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    source = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 25
    assert {name for name in named if f"def {name}(" not in source} == set()


def test_every_row_of_the_threat_table_has_a_defence_and_a_test() -> None:
    table = PAGE.partition("## Threats")[2].partition("##")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    assert len(rows) > 20
    assert [row for row in rows[2:] if len(row) != 4 or not row[2] or not row[3].startswith("`test_")] == []


def test_every_role_has_its_row() -> None:
    table = PAGE.partition("## Identities")[2].partition("## Threats")[0].lower()
    words = {Role.SERVER: "fl server"}
    assert [role for role in Role if f"| {words.get(role, role.value)} |" not in table] == []
