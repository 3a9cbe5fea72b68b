"""Settings in layers: file, then environment, then options, and what is said about a file that is wrong or exposed."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from fedops_mqtt.cli.entry import run
from fedops_mqtt.cli.options import make_settings
from fedops_mqtt.runtime import settings as settings_module
from fedops_mqtt.runtime.settings import ClientSettings, ManagerSettings, ServerSettings
from fedops_mqtt.runtime.settings_file import SettingsFileError, exposed_files
from fedops_mqtt.runtime.systemd import ExitCode


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bundle.toml"
    path.write_text('client_name = "from-file"\nheartbeat_s = 7\ntask_id = "digits"\n')
    path.chmod(0o600)
    monkeypatch.setenv("FEDOPS_MQTT_CONFIG", str(path))
    return path


def test_a_file_outweighs_the_default(file: Path) -> None:
    assert ClientSettings().heartbeat_s == 7


def test_the_environment_outweighs_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOPS_MQTT_CLIENT_NAME", "from-environment")
    assert ClientSettings().client_name == "from-environment"


def test_an_option_outweighs_both(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOPS_MQTT_CLIENT_NAME", "from-environment")
    made = make_settings(ClientSettings, {"client_name": "from-option"})
    assert (made.client_name, made.heartbeat_s) == ("from-option", 7)


def test_paths_are_relative_to_the_file(file: Path) -> None:
    file.write_text('broker_ca_file = "ca.crt"\nbroker_key_file = "/elsewhere/key"\n')
    made = ClientSettings()
    assert (made.broker_ca_file, made.broker_key_file) == (file.parent / "ca.crt", Path("/elsewhere/key"))


def test_several_brokers_are_a_list_in_a_file_and_have_commas_elsewhere(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('broker = ["mqtts://a", "mqtts://b"]\n')
    assert ClientSettings().broker == "mqtts://a,mqtts://b"
    monkeypatch.setenv("FEDOPS_MQTT_BROKER", "mqtts://c,mqtts://d")
    assert ClientSettings().broker == "mqtts://c,mqtts://d"


def test_limits_of_a_run_are_a_table(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[limits]\nround_s = 5\njoin_s = 6\n")
    monkeypatch.setenv("FEDOPS_MQTT_JOIN_S", "9")
    limits = make_settings(ManagerSettings, {}).limits
    assert (limits.round_s, limits.join_s) == (5, 9)


def test_one_file_may_serve_two_roles(file: Path) -> None:
    file.write_text('task_id = "digits"\nnum_rounds = 3\nclient_name = "x"\n')
    assert ServerSettings().num_rounds == 3
    assert ClientSettings().client_name == "x"


@pytest.mark.parametrize("text", ['brokr = "x"', "[limit]\nround_s = 5", "[limits]\nround = 5", "broker ="])
def test_a_typing_mistake_in_a_file_is_an_error(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsFileError, match="settings file"):
        ManagerSettings()


def test_a_file_that_is_not_there_is_an_error(file: Path) -> None:
    file.unlink()
    with pytest.raises(SettingsFileError, match="No such file"):
        ClientSettings()


def test_a_wrong_value_is_reported_with_the_file_it_stands_in(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("keepalive_s = 0\n")
    with pytest.raises(ValidationError):
        ClientSettings()
    assert run(["client", "--config", str(file)]) == ExitCode.CONFIG
    assert f"{file}: keepalive_s" in capsys.readouterr().err


def test_a_file_with_a_secret_that_others_can_read_is_named(file: Path) -> None:
    file.write_text('broker_password = "secret"\n')
    assert exposed_files(ClientSettings(), file) == []
    file.chmod(0o640)
    assert exposed_files(ClientSettings(), file) == [file]


def test_a_file_without_secrets_may_be_read_by_others_but_a_key_may_not(file: Path) -> None:
    key = file.parent / "client.key"
    key.write_text("key")
    key.chmod(0o644)
    file.write_text('broker_key_file = "client.key"\n')
    file.chmod(0o644)
    assert exposed_files(ClientSettings(), file) == [key]


@pytest.mark.parametrize(
    ("role", "text"),
    [
        (ServerSettings, 'line_cert_file = "x"'),
        (ManagerSettings, 'http_key_file = "x"'),
        (ManagerSettings, 'http_client_ca_file = "x"'),
        (ClientSettings, 'http_cert_file = "x"'),
    ],
)
def test_half_a_certificate_is_an_error_and_not_a_plain_connection(
    file: Path, role: type[ServerSettings | ManagerSettings | ClientSettings], text: str
) -> None:
    file.write_text(text)
    with pytest.raises(ValidationError, match=r"go together|set http_cert_file"):
        role()


@pytest.mark.parametrize(
    "said",
    ["http://fl.example.org", "http://fl:9000", "fl.example.org:", "fl:x", "fl:99999", "::1", "a b", "fl..org", "h:٣"],
)
def test_an_unreachable_address_is_refused_at_the_start(said: str) -> None:
    with pytest.raises(ValidationError, match=r"host or host:port|a port is 1|between the dots"):
        ServerSettings(advertise=said)


@pytest.mark.parametrize("said", ["fl..example.org:80", f"{'x' * 64}:80", "h:٣", "h:99999"])
def test_an_address_that_nothing_can_listen_on_is_refused_at_the_start(said: str) -> None:
    with pytest.raises(ValidationError, match="http"):
        ManagerSettings(http=said)


@pytest.mark.parametrize("said", ["fl.example.org", "fl.example.org:9000", "10.0.0.7", "[2001:db8::7]:9000", "[::1]"])
def test_an_address_is_host_or_host_and_port(said: str) -> None:
    assert ServerSettings(advertise=said).advertise == said


@pytest.mark.parametrize("role", ["client", "bridge"])
def test_a_token_that_no_training_could_be_given_is_refused_at_the_start_and_not_shown(
    role: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDOPS_MQTT_JOIN_TOKEN", "s3cret" * 50)
    assert run([role]) == 78
    assert "FEDOPS_MQTT_JOIN_TOKEN: Value should have at most 256" in (said := capsys.readouterr().err)
    assert "s3cret" not in said


def test_a_managers_url_without_its_scheme_is_refused_at_the_start_and_not_repeated() -> None:
    for name in ("client_manager_url", "server_manager_url"):
        with pytest.raises(ValidationError, match="begins with http://") as caught:
            ClientSettings(**{name: "02-00-00-00-00-01:S3cret@manager:8004"})  # type: ignore[arg-type]
        assert "S3cret" not in caught.value.errors(include_input=False)[0]["msg"]


@pytest.mark.parametrize("value", ["inf", "nan", "1e999"])
def test_no_number_of_a_setting_or_limit_is_infinite(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    classes = [
        each for each in vars(settings_module).values() if isinstance(each, type) and issubclass(each, BaseModel)
    ]
    numbers = [
        (each, name) for each in classes for name, field in each.model_fields.items() if field.annotation is float
    ]
    assert len(numbers) > 50
    for model, name in numbers:
        with pytest.raises(ValidationError, match=rf"(?m)^{name}\n"):
            model(**{name: value})
    monkeypatch.setenv("FEDOPS_MQTT_RUN_S", value)
    with pytest.raises(ValidationError, match="run_s"):
        ManagerSettings()
