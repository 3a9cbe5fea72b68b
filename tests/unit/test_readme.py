"""What the README says is true: topics, links, verbs and targets. Its commands are run by the acceptance tests."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from fedops_mqtt.cli.entry import make_app
from fedops_mqtt.protocol import MESSAGE_OF_CHANNEL, Channel, ClientCondition
from fedops_mqtt.runtime.systemd import ExitCode

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")

WRITERS = {
    Channel.CLIENT_STATUS: "client, and its last will",
    Channel.CLIENT_START: "manager",
    Channel.CLIENT_STOP: "manager",
    Channel.CLIENT_METRICS: "client",
    Channel.SERVER_STATUS: "FL server, and its last will",
    Channel.SERVER_METRICS: "FL server",
    Channel.RUN_STATUS: "manager",
    Channel.MANAGER_STATUS: "manager, and its last will",
}


def topic_rows(page: str) -> list[list[str]]:
    rows = [line for line in page.splitlines() if line.startswith("| `fedops/v1/")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "protocol.md"], ids=lambda page: page.name)
def test_the_topic_table_is_the_protocol(page: Path) -> None:
    assert topic_rows(page.read_text(encoding="utf-8")) == [
        [
            channel.value,
            WRITERS[channel],
            "yes" if channel.is_retained else "no",
            str(channel.qos),
            MESSAGE_OF_CHANNEL[channel].__name__,
        ]
        for channel in Channel
    ]


def test_the_five_statuses_are_named() -> None:
    told = README.partition("A client's `status` is one of")[2].partition("All five")[0]
    assert re.findall(r"`([a-z-]+)`", told) == [str(condition) for condition in ClientCondition]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    unlinked = [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in README]
    assert not unlinked


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "glossary.md"], ids=lambda page: page.name)
def test_every_page_leads_to_the_glossary(page: Path) -> None:
    assert "glossary.md)" in page.read_text(encoding="utf-8")


def shown_commands() -> list[str]:
    commands = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for code in re.findall(r"```console\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text):
            commands += re.findall(r"^(?:\$ )?fedops-mqtt ([a-z][^\n#]*)", code, re.MULTILINE)
    return sorted({command.strip() for command in commands})


@pytest.mark.parametrize("shown", shown_commands())
def test_every_command_that_is_shown_exists_with_its_options(shown: str) -> None:
    command = typer.main.get_command(make_app())
    words = shlex.split(shown)
    while words and getattr(command, "commands", None):
        if words[0] not in command.commands and hasattr(command, "default"):  # type: ignore[attr-defined]
            words.insert(0, command.default)
        if words[0] not in command.commands:  # type: ignore[attr-defined]
            break
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    assert not getattr(command, "commands", None) or not words, f"no such verb: {shown}"
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


def test_the_documented_exit_statuses_are_those_of_the_program() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    told = {name: int(status) for status, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    assert told == {code.name: int(code) for code in ExitCode}


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)", README, re.MULTILINE)) != set()
    assert {name for pair in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", README, re.MULTILINE) for name in pair} - {
        ""
    } <= targets


def test_every_file_that_is_named_is_there() -> None:
    named = re.findall(r"`((?:examples|broker-config|docs)/[\w./-]+)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
