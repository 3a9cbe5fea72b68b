"""Every knob once, with its unit, default and reason; the only reader of the environment.

A value comes from the file that `FEDOPS_MQTT_CONFIG` names, from `FEDOPS_MQTT_<FIELD>`, or by keyword (an option), the
later outweighing the earlier. Everything else in the package takes plain keyword-only values and never looks itself.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.protocol import MAX_TEXT_CHARS, AnyMacAddress, TaskId
from fedops_mqtt.protocol.values import MAX_LIMIT_S, Count
from fedops_mqtt.runtime.key_values import KeyValues
from fedops_mqtt.runtime.machine import HostAndPort, HttpAddress, HttpUrl, default_state_dir, default_store_url, in_home
from fedops_mqtt.runtime.settings_file import JOINED, FileSource
from fedops_mqtt.runtime.site_addresses import SiteAddress, parse_sites

DELIVERED = "delivered"
"""The value of `app` where the device runs delivered apps."""
AFTER_APPROVAL = "delivered-after-approval"
IS_DELIVERED = (DELIVERED, AFTER_APPROVAL)


def _join(value: Any) -> Any:
    return ",".join(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else value


class DeliveredAppSettings(BaseModel, allow_inf_nan=False):
    """All but `app` counts only where that is `delivered` or `delivered-after-approval`."""

    app: Annotated[
        str | None, Field(description="MODULE:ATTRIBUTE of a ClientApp, or delivered, or delivered-after-approval")
    ] = None
    app_signers: Annotated[
        str, BeforeValidator(_join), Field(description="public keys of whoever may sign delivered apps, comma between")
    ] = ""
    app_min_version: Annotated[
        str | None, Field(description="delivered apps below this version are refused, however well signed")
    ] = None
    app_max_bytes: Annotated[int, Field(ge=1024, description="largest app bundle that is fetched")] = 10 * 1024**2
    app_fetch_limit_s: Annotated[float, Field(gt=0, description="fetching an app, with all its tries")] = 600.0
    app_keep_num: Annotated[int, Field(ge=1, description="delivered apps that are kept, the last used first")] = 5
    app_keep_bytes: Annotated[int, Field(ge=0, description="bytes of delivered apps that are kept")] = 500 * 1024**2
    app_keep_days: Annotated[float, Field(gt=0, description="delivered apps unused for longer are removed")] = 90.0
    app_install: Annotated[
        Literal["off", "venv"], Field(description="what an app needs and is missing: refuse it, or make it a venv")
    ] = "off"
    app_index_url: Annotated[
        str | None, Field(description="package index of these environments; default: as pip is configured here")
    ] = None
    app_install_limit_s: Annotated[float, Field(gt=0, description="making one of these environments")] = 900.0
    app_install_max_bytes: Annotated[int, Field(ge=0, description="size of one of these environments")] = 2 * 1024**3


class PublishSettings(BaseModel):
    """What a manager lets be published, and how much of it stays."""

    app_signers: Annotated[
        str,
        BeforeValidator(_join),
        Field(description="public keys, comma between: only apps signed with one can be published"),
    ] = ""
    app_max_bytes: Annotated[int, Field(ge=1024, description="largest app bundle that can be published")] = 10 * 1024**2
    keep_apps: Annotated[int, Field(ge=2, description="versions of each task's app that are kept")] = 20


StartToken = Annotated[SecretStr, Field(max_length=MAX_TEXT_CHARS)]
"""Goes to a training process in the place of a start's own token, and no longer one is read there."""
Seconds = Annotated[float, Field(gt=0, le=MAX_LIMIT_S)]
JoinToken = Annotated[StartToken | None, Field(description="shared token of servers started by hand")]
LineCaFile = Annotated[Path | None, Field(description="CA of the FL server; set: a plain line is refused")]
RejoinLimit = Annotated[float, Field(gt=0, description="after a lost line, before giving up")]
TrainingLimit = Annotated[float, Field(gt=0, description="longest training of one run")]
LogLevel = Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR")]

_AGGREGATION = ("FEDOPS_AGGREGATION_SERVER", "FEDOPS_AGGREGATION_HOST")
ENV_PREFIX = "FEDOPS_MQTT_"
CONFIG_VARIABLE = "FEDOPS_MQTT_CONFIG"
"""Names the settings file; the option `--config` does the same."""


StateDir = Annotated[Path, Field(default_factory=default_state_dir)]
StoreUrl = Annotated[str, Field(default_factory=default_store_url, description="where FL servers keep global models")]


def inherited_environment() -> dict[str, str]:
    """Return this process's environment, for the processes that it starts."""
    return dict(os.environ)


def environment_without_settings(inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment (default: this process's) without this package's settings, some of which are secrets."""
    every = os.environ if inherited is None else inherited
    return {name: value for name, value in every.items() if not name.startswith(ENV_PREFIX)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """systemd's socket, and the period of its watchdog (sd_notify(3), sd_watchdog_enabled(3))."""

    notify_socket: str | None = None
    watchdog_s: float | None = None
    watchdog_pid: int | None = None


def service_manager() -> ServiceManager:
    """Return what systemd has put into the environment; nothing without it."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    return ServiceManager(
        notify_socket=os.environ.get("NOTIFY_SOCKET") or None,
        watchdog_s=int(microseconds) / 1e6 if microseconds.isdigit() else None,
        watchdog_pid=int(pid) if pid.isdigit() else None,
    )


def config_file() -> Path | None:
    """Return the settings file that the environment names."""
    path = os.environ.get(CONFIG_VARIABLE)
    return Path(path) if path else None


def use_config_file(path: Path) -> None:
    """Name the settings file of this process, and of the one it becomes."""
    os.environ[CONFIG_VARIABLE] = str(path.resolve())


def broker_of(bundle: Path) -> dict[str, Any]:
    """Return a bundle's settings of the broker and the credentials there, by name.

    Raises:
        SettingsFileError: it cannot be used.
    """
    return FileSource(BusSettings, bundle, None)()


def origin_of(field: str) -> str:
    """Return where a field's value comes from, for a message about it, when no option gives it."""
    variable = f"{ENV_PREFIX}{field.upper()}"
    path = config_file()
    return f"environment variable {variable}" if path is None or variable in os.environ else f"{path}: {field}"


def _check_pair(certificate: Path | None, certificate_name: str, key: Path | None, key_name: str) -> None:
    """Refuse one without the other: the result would be no TLS where it is expected."""
    if (certificate is None) != (key is None):
        raise ValueError(f"{certificate_name} and {key_name} go together: one of them is not set")


class _Settings(BaseSettings):
    # A process uses one or two of these classes: the others are never built, which a small device notices.
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="ignore", frozen=True, defer_build=True, allow_inf_nan=False
    )
    file_table: ClassVar[str | None] = None
    """Which table of the settings file is read; None: its top."""

    @field_validator("*")
    @classmethod
    def _write_out_home(cls, value: Any) -> Any:
        return in_home(value) if isinstance(value, Path) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the settings file below the environment."""
        return init_settings, env_settings, FileSource(settings_cls, config_file(), cls.file_table)


class BusSettings(_Settings):
    """How to reach the broker and how long to wait for it."""

    broker: Annotated[str, JOINED, Field(description="mqtt[s]://[user:password@]host:port[,…]")] = (
        "mqtt://127.0.0.1:1883"
    )
    broker_user: Annotated[str | None, Field(description="user name, where the broker wants one")] = None
    broker_password: Annotated[SecretStr | None, Field(description="its password")] = None
    broker_ca_file: Annotated[Path | None, Field(description="CA that the broker's certificate is signed by")] = None
    broker_first_try_s: Annotated[float, Field(gt=0, description="of several brokers, wait for each at first")] = 3.0
    broker_return_s: Annotated[float, Field(gt=0, description="look whether the first of several is back")] = 120.0
    broker_cert_file: Annotated[Path | None, Field(description="our certificate, where the broker wants one")] = None
    broker_key_file: Annotated[Path | None, Field(description="the key of our certificate")] = None
    keepalive_s: Annotated[int, Field(ge=1, le=65535, description="MQTT keep alive; a silent death shows in 1.5x")] = 20
    connect_timeout_s: Annotated[float, Field(gt=0, description="wait for the broker to take a connection")] = 10.0
    publish_timeout_s: Annotated[float, Field(gt=0, description="wait for the broker's acknowledgement")] = 10.0
    subscribe_qos: Annotated[int, Field(ge=0, le=1, description="of subscriptions; 0: cheaper on a cluster")] = 1
    backoff_initial_s: Annotated[float, Field(gt=0, description="first upper bound of the jittered wait")] = 0.5
    backoff_max_s: Annotated[float, Field(gt=0, description="last upper bound of the jittered wait")] = 30.0
    heartbeat_s: Annotated[
        float, Field(gt=0, le=86_400, description="an owner repeats its status this often; lease: 3x")
    ] = 60.0


class HttpAccessSettings(_Settings):
    """Who may come in over HTTP; without any of this only this machine may."""

    http_cert_file: Annotated[Path | None, Field(description="certificate of our HTTP address; set: HTTPS only")] = None
    http_key_file: Annotated[Path | None, Field(description="the key of that certificate")] = None
    http_client_ca_file: Annotated[Path | None, Field(description="CA of client certificates; set: one is needed")] = (
        None
    )
    http_cors: Annotated[str, Field(description="web origins that may ask, comma between them; empty: none")] = ""

    @model_validator(mode="after")
    def _half_an_address_is_invalid(self) -> Self:
        _check_pair(self.http_cert_file, "http_cert_file", self.http_key_file, "http_key_file")
        if self.http_client_ca_file and not self.http_cert_file:
            raise ValueError("http_client_ca_file asks for certificates over TLS: set http_cert_file and http_key_file")
        return self


class ClientSettings(BusSettings, HttpAccessSettings, DeliveredAppSettings):
    """The daemon on a device."""

    task_id: Annotated[TaskId | None, Field(description="the federated task that this device takes part in")] = None
    check_app: Annotated[bool, Field(description="import the app at the start, in a process of its own")] = True
    mac: Annotated[AnyMacAddress | None, Field(description="this device's MAC; default: its network card's")] = None
    client_name: Annotated[str | None, Field(description="a name for people; default: the host name")] = None
    http: Annotated[HttpAddress | None, Field(description="where the FedOps HTTP shim listens; unset: no shim")] = None
    http_token: Annotated[SecretStr | None, Field(description="token of the shim; needed beyond loopback")] = None
    client_manager_url: Annotated[
        HttpUrl | None, Field(description="FedOps client manager before the shim; default: FEDOPS_CLIENT_MANAGER_URL")
    ] = Field(default_factory=lambda: os.environ.get("FEDOPS_CLIENT_MANAGER_URL") or None)
    server_manager_url: Annotated[
        HttpUrl | None, Field(description="FedOps server manager that knows ports; default: FEDOPS_SERVER_MANAGER_URL")
    ] = Field(default_factory=lambda: os.environ.get("FEDOPS_SERVER_MANAGER_URL") or None)
    aggregation_host: Annotated[
        HostAndPort | None,
        Field(description="FL server's host[:port], for FedOps managers; FEDOPS_AGGREGATION_SERVER, …_HOST"),
    ] = Field(default_factory=lambda: next(filter(None, map(os.environ.get, _AGGREGATION)), None))
    http_any_mac: Annotated[bool, Field(description="take POST /start of a manager that has another MAC")] = False
    server_ip_allow: Annotated[
        str,
        Field(description="FL servers that POST /start may name: hosts, networks, host:port; else our managers' hosts"),
    ] = ""
    http_get_start: Annotated[bool, Field(description="GET /start/HOST:PORT of FedOps' first managers starts")] = False
    state_dir: Annotated[StateDir, Field(description="where the journal is kept")]
    join_token: JoinToken = None
    line_ca_file: LineCaFile = None
    join_limit_s: Annotated[float, Field(gt=0, description="training process waits this long for its server")] = 60.0
    rejoin_limit_s: RejoinLimit = 120.0
    run_limit_s: TrainingLimit = 24 * 3600.0
    stop_grace_s: Annotated[float, Field(gt=0, description="between SIGTERM and SIGKILL")] = 10.0
    keep_ready: Annotated[bool, Field(description="a process with Flower imported waits for a start")] = False
    stderr_lines: Annotated[int, Field(ge=1, le=200, description="kept of a failed training")] = 20
    partition_id: Annotated[int | None, Field(ge=0, description="node_config partition-id")] = None
    num_partitions: Annotated[int | None, Field(ge=1, description="node_config num-partitions")] = None
    node_config: Annotated[KeyValues, Field(description="more of node_config: 'key=1 other=\"text\"'")] = ""
    run_config: Annotated[KeyValues, Field(description="run_config, above the project's own: 'key=1'")] = ""
    system_interval_s: Annotated[float, Field(ge=0, description="system load is measured this often; 0: never")] = 5.0
    wandb_project: Annotated[str | None, Field(description="Weights & Biases project; unset: off")] = None
    wandb_key: Annotated[SecretStr | None, Field(description="its API key")] = None
    log_level: LogLevel = "INFO"


class RunLimitSettings(RunLimits, _Settings):
    """The manager's own limits of a run; a task may have others."""

    file_table = "limits"


class ManagerSettings(BusSettings, HttpAccessSettings, PublishSettings):
    """The manager."""

    http: Annotated[HttpAddress, Field(description="where the manager's API and page listen")] = "127.0.0.1:8004"
    tasks_file: Annotated[Path | None, Field(description="tasks.toml: how to launch each task's FL server")] = None
    database_url: Annotated[str | None, Field(description="SQLAlchemy URL; default: SQLite in the state folder")] = None
    state_dir: Annotated[StateDir, Field(description="where the journal and the logs of FL servers are kept")]
    store: StoreUrl
    manager_token: Annotated[SecretStr | None, Field(description="token of the API; needed beyond loopback")] = None
    sites: Annotated[str | None, JOINED, Field(description="managers to show on the page /sites: [NAME=]URL,…")] = None
    sites_token: Annotated[SecretStr | None, JOINED, Field(description="their token; or NAME=TOKEN,…")] = None
    sites_ca_file: Annotated[Path | None, Field(description="CA of those managers with HTTPS")] = None
    home_assistant: Annotated[
        str | None,
        Field(
            pattern=r"^[^+#\x00]+$",
            description="topic prefix of Home Assistant discovery, mostly homeassistant; unset: off",
        ),
    ] = None
    archive_after_s: Annotated[float, Field(gt=0, description="a finished run leaves the bus after this")] = 3600.0
    keep_runs_s: Annotated[float, Field(gt=0, description="archived runs are deleted after this")] = 365 * 86400.0
    keep_events_s: Annotated[float, Field(gt=0, description="events and client metrics are deleted after this")] = (
        90 * 86400.0
    )
    server_stop_grace_s: Annotated[float, Field(gt=0, description="between SIGTERM and SIGKILL of an FL server")] = 10.0
    limits: RunLimitSettings = Field(default_factory=RunLimitSettings)
    log_level: LogLevel = "INFO"

    @property
    def site_addresses(self) -> tuple[SiteAddress, ...]:
        """The managers that the page shows."""
        token = self.sites_token
        return parse_sites(self.sites, token.get_secret_value() if token else None) if self.sites else ()

    @model_validator(mode="after")
    def _sites_are_urls(self) -> Self:
        try:
            _ = self.site_addresses
        except ValueError as error:
            raise ValueError(f"sites, sites_token: {error}") from error
        return self


class ServerSettings(BusSettings):
    """The settings of an FL server process, mostly from the manager that launches it."""

    task_id: TaskId | None = None
    run_id: str | None = None
    launch: Annotated[int, Field(ge=0)] = 0
    run_secret_file: Annotated[Path | None, Field(description="0600; holds the run secret, hexadecimal")] = None
    final_status_file: Annotated[Path | None, Field(description="receives the final status before it is published")] = (
        None
    )
    stop_reason_file: Annotated[Path | None, Field(description="has the run's outcome and the reason, at SIGTERM")] = (
        None
    )
    join: Literal["invited", "open"] = "invited"
    join_token: SecretStr | None = None
    listen: HttpAddress = "127.0.0.1:0"
    advertise: Annotated[HostAndPort | None, Field(description="host[:port] for clients; default: listen")] = None
    num_rounds: Annotated[int | None, Field(ge=1)] = None
    min_clients: Annotated[int | None, Field(ge=1)] = None
    app_file: Annotated[Path | None, Field(description="app bundle of the run, which its clients fetch from here")] = (
        None
    )
    run_config: Annotated[KeyValues, Field(description="settings of this run for the app: 'key=1'")] = ""
    store: StoreUrl
    report_fd: Annotated[
        int | None, Field(ge=0, description="status is written to this descriptor instead of a bus")
    ] = None
    state_dir: StateDir
    join_limit_s: Seconds = 120.0
    round_limit_s: Seconds = 3600.0
    run_limit_s: Seconds = 24 * 3600.0
    rejoin_limit_s: Seconds = 120.0
    line_ping_s: Annotated[Seconds, Field(description="a vanished host is noticed within three of these")] = 5.0
    line_cert_file: Path | None = None
    line_key_file: Path | None = None
    max_message_bytes: Annotated[int, Field(ge=1024, description="largest message on the line")] = 4 * 1024**3
    accept_any_shape: Annotated[bool, Field(description="replies to training need not be the model")] = False
    accept_nonfinite: Annotated[bool, Field(description="updates with NaN or infinities are averaged too")] = False
    compress_level: Annotated[int, Field(ge=0, le=22, description="zstd level for arrays; 0: off")] = 0
    compress_threshold_bytes: Annotated[Count, Field(description="smaller arrays are not compressed")] = 65536
    linger_s: Annotated[float, Field(gt=0, description="after the end, until every client has the result")] = 5.0
    stop_grace_s: Annotated[float, Field(gt=0, description="between a stop and interrupting code that computes")] = 3.0
    wandb_project: Annotated[str | None, Field(description="Weights & Biases project; unset: off")] = None
    wandb_key: Annotated[SecretStr | None, Field(description="its API key")] = None
    log_level: str = "INFO"

    @model_validator(mode="after")
    def _half_a_certificate_is_none(self) -> Self:
        _check_pair(self.line_cert_file, "line_cert_file", self.line_key_file, "line_key_file")
        return self


class FedOpsSettings(BaseSettings):
    """FedOps' own variables of a server, under their own names; ours outweigh them."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, defer_build=True)
    task_id: Annotated[TaskId | None, Field(description="TASK_ID, where FEDOPS_MQTT_TASK_ID is not set")] = None
    bucket_name: Annotated[str, Field(description="S3 bucket of FedOps' upload and download")] = "global-model"
    access_key_id: SecretStr | None = None
    access_secret_key: SecretStr | None = None


class CliSettings(_Settings):
    """The verbs that use a manager."""

    manager: Annotated[str, JOINED, Field(description="URL of the manager's API; several sites: [NAME=]URL,…")] = (
        "http://127.0.0.1:8004"
    )
    site: Annotated[str | None, Field(description="of several sites only this one")] = None
    manager_token: Annotated[SecretStr | None, JOINED, Field(description="its token; of several: NAME=TOKEN,…")] = None
    manager_ca_file: Annotated[Path | None, Field(description="CA of a manager with HTTPS")] = None
    manager_cert_file: Annotated[Path | None, Field(description="our certificate, where the manager wants one")] = None
    manager_key_file: Annotated[Path | None, Field(description="the key of our certificate")] = None
    request_timeout_s: Annotated[float, Field(gt=0, description="wait for an answer of the manager")] = 10.0


class LogsSettings(CliSettings):
    """The verb `logs`, which also reads what this machine's own trainings have printed."""

    state_dir: Annotated[StateDir, Field(description="with --training: the state folder of this machine's clients")]


class BrokerSettings(_Settings):
    """The mosquitto that `fedops-mqtt broker` runs."""

    broker_port: Annotated[int, Field(ge=0, le=65535, description="TCP port; 0 takes a free one")] = 1883
    broker_config: Annotated[Path | None, Field(description="mosquitto.conf to run; default: the shipped one")] = None
    broker_data_dir: Annotated[Path | None, Field(description="keeps what is retained; default: nothing is kept")] = (
        None
    )


class BridgeSettings(BusSettings):
    """The bridge for FedOps clients and servers that know HTTP and gRPC only."""

    clients: Annotated[str, Field(description="FedOps clients to serve: [MAC=]URL, comma between them")] = (
        "http://127.0.0.1:8003"
    )
    http: Annotated[HttpAddress, Field(description="where FedOps' programs find their managers")] = "127.0.0.1:8004"
    bundles: Annotated[
        Path | None, Field(description="folder of bundles: each client's, server-TASK for servers; a broker wants them")
    ] = None
    bridge_token: Annotated[SecretStr | None, Field(description="password in FedOps' URLs; needed beyond loopback")] = (
        None
    )
    grpc_gateways: Annotated[
        HttpAddress, Field(description="gRPC address of the first client; the next has the next port")
    ] = "127.0.0.1:0"
    fedops_server: Annotated[
        HttpAddress, Field(description="where FedOps' FL servers are reached; no host: where their calls come from")
    ] = ":8080"
    poll_s: Annotated[float, Field(gt=0, description="a client is asked whether it is online this often")] = 2.0
    online_timeout_s: Annotated[float, Field(gt=0, description="wait for the answer to that")] = 5.0
    join_limit_s: Annotated[float, Field(gt=0, description="from a client's start until it joins its server")] = 60.0
    report_limit_s: Annotated[float, Field(gt=0, description="from a run's end until its client reports it")] = 30.0
    server_start_limit_s: Annotated[float, Field(gt=0, description="a FedOps server answers within this")] = 120.0
    state_dir: Annotated[StateDir, Field(description="where the journals of its clients are kept")]
    join_token: JoinToken = None
    line_ca_file: LineCaFile = None
    rejoin_limit_s: RejoinLimit = 120.0
    run_limit_s: TrainingLimit = 24 * 3600.0
    log_level: LogLevel = "INFO"


class WatchSettings(BusSettings):
    """The dashboard in the terminal."""

    task_id: Annotated[TaskId | None, Field(description="watch only this task")] = None


class ModelSettings(_Settings):
    """The verbs about stored models."""

    store: StoreUrl


class FleetSettings(_Settings):
    """The verbs that look after a fleet's credentials."""

    fleet_dir: Annotated[Path, Field(description="the folder with the fleet's CA, register, bundles")] = Path("fleet")


class DoctorSettings(BusSettings):
    """What `fedops-mqtt doctor` looks at: the settings of any role, as its bundle has them."""

    task_id: Annotated[TaskId | None, Field(description="the task of the identity that is checked")] = None
    mac: Annotated[AnyMacAddress | None, Field(description="the MAC of the device that is checked")] = None
    app: Annotated[str | None, Field(description="the ClientApp that the device trains: it is imported")] = None
    role: Annotated[
        Literal["device", "manager", "server", "dashboard", "bridge"] | None,
        Field(description="whose rules are checked: device, manager, server, dashboard or bridge; default: a guess"),
    ] = None
    http: Annotated[HttpAddress | None, Field(description="an address that must be free to listen on")] = None
    listen: Annotated[HttpAddress | None, Field(description="the same for an FL server's line")] = None
    state_dir: Annotated[StateDir, Field(description="a folder that must be there to write to")]
    line_ca_file: Annotated[Path | None, Field(description="CA of the FL server")] = None
    line_cert_file: Annotated[Path | None, Field(description="certificate of an FL server's line")] = None
    line_key_file: Annotated[Path | None, Field(description="the key of that certificate")] = None
