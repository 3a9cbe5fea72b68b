"""Help and options: every verb explains itself, every setting is reachable, secrets never are arguments."""

import re

import pytest
import typer
from click import Command, Context
from pydantic_settings import BaseSettings

from fedops_mqtt.cli.entry import make_app, run
from fedops_mqtt.cli.options import environment_of, option_name, secrets_of
from fedops_mqtt.runtime.settings import BrokerSettings, ClientSettings, CliSettings, ManagerSettings, WatchSettings
from fedops_mqtt.runtime.systemd import ExitCode

VERBS = ("demo", "broker", "client", "manager", "clients", "runs", "start", "stop", "watch")
SETTINGS: dict[str, type[BaseSettings]] = {
    "broker": BrokerSettings,
    "client": ClientSettings,
    "manager": ManagerSettings,
    "clients": CliSettings,
    "runs": CliSettings,
    "start": CliSettings,
    "stop": CliSettings,
    "watch": WatchSettings,
}


def commands() -> dict[str, Command]:
    return typer.main.get_command(make_app()).commands  # type: ignore[attr-defined,no-any-return]


def help_of(verb: str) -> str:
    command = commands()[verb]
    return command.get_help(Context(command, info_name=verb, max_content_width=10_000, terminal_width=10_000))


def test_help_lists_the_verbs() -> None:
    assert set(VERBS) <= set(commands())


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_a_sentence_and_an_example(verb: str) -> None:
    text = help_of(verb)
    assert re.search(r"^\s+[A-Z].*\.$", text, re.MULTILINE)
    assert re.search(rf"^ +fedops-mqtt {verb}\b", text, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_help_text(verb: str) -> None:
    missing = [each.name for each in commands()[verb].params if each.param_type_name == "option" and not each.help]  # type: ignore[attr-defined]
    assert missing == []


@pytest.mark.parametrize("verb", SETTINGS)
def test_every_environment_variable_is_in_the_help(verb: str) -> None:
    text = help_of(verb)
    assert [name for name in environment_of(SETTINGS[verb]) if name not in text] == []


@pytest.mark.parametrize("verb", SETTINGS)
def test_every_setting_but_the_secret_ones_is_an_option(verb: str) -> None:
    options = {option for parameter in commands()[verb].params for option in parameter.opts}
    secret = set(secrets_of(SETTINGS[verb]))
    for variable in environment_of(SETTINGS[verb]):
        name = option_name(variable.removeprefix("FEDOPS_MQTT_").lower())
        assert (name in options) != (variable in secret), variable


def test_a_wrong_option_value_is_a_usage_error_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", "--heartbeat-s", "-1"]) == ExitCode.USAGE
    assert "--heartbeat-s" in capsys.readouterr().err


def test_a_wrong_environment_variable_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDOPS_MQTT_HEARTBEAT_S", "soon")
    assert run(["watch"]) == ExitCode.CONFIG
    told = capsys.readouterr().err
    assert "FEDOPS_MQTT_HEARTBEAT_S" in told
    assert "soon" not in told


@pytest.mark.parametrize(
    ("arguments", "code", "advice"),
    [
        (["watch", "--broker", "http://x"], ExitCode.CONFIG, "--broker"),
        (["watch", "--broker", "mqtt://127.0.0.1:1"], ExitCode.UNAVAILABLE, "fedops-mqtt broker"),
        (["clients", "--manager", "http://127.0.0.1:1"], ExitCode.UNAVAILABLE, "fedops-mqtt manager"),
        (["runs", "--manager", "nonsense"], ExitCode.CONFIG, "--manager"),
        (["client"], ExitCode.USAGE, "--task-id"),
        (["no-such-verb"], ExitCode.USAGE, "no-such-verb"),
    ],
)
def test_a_fatal_message_names_what_to_do_next(
    arguments: list[str], code: ExitCode, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    told = capsys.readouterr()
    assert advice in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == ExitCode.OK
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
