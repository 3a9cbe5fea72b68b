"""The table part of docs/moving-from-fedops.md, made from `fedops_names`: `python tests/unit/moving/moving_page.py`."""

from pathlib import Path

from fedops_names import NAMES, REPORTS, WORDS

PAGE = Path(__file__).parents[3] / "docs" / "moving-from-fedops.md"
MARK = "<!-- made from tests/unit/moving/fedops_names.py -->"


def tables() -> str:
    """Return everything below the mark."""
    lines = [MARK, ""]
    for module in dict.fromkeys(row.module for row in NAMES):
        lines += [f"### `fedops.{module}` is `fedops_mqtt.{module}`", "", "| FedOps | here |", "|---|---|"]
        for row in NAMES:
            if row.module == module:
                lines.append(f"| `{row.name}({', '.join(row.parameters)})` | {row.here} |")
        lines.append("")
    lines += ["### Fields of reports", "", "| FedOps | fields, kept | here |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {', '.join(f'`{field}`' for field in row.fields)} | {row.here} |" for row in REPORTS]
    lines.append("")
    titles = {"endpoint": "Endpoints", "environment": "Environment variables", "field": "Fields of `FLClientStatus`"}
    titles["absent"] = "What is not here"
    for kind, title in titles.items():
        lines += [f"### {title}", "", "| FedOps | here |", "|---|---|"]
        lines += [f"| `{row.name}` | {row.here} |" for row in WORDS if row.kind == kind]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    above = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(above + tables(), encoding="utf-8")
