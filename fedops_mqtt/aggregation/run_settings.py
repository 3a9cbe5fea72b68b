"""What this FL server is asked to do, from its settings and FedOps' cfg.

The launcher's settings win: settings with a run id outrank cfg; a server started by hand follows cfg.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flwr.server.strategy import Strategy as ClassicStrategy
from flwr.serverapp.strategy import Strategy

from fedops_mqtt.aggregation.errors import ServerConfigError
from fedops_mqtt.apps import AppBundle, AppRefusedError, BundleLimits, read_bundle
from fedops_mqtt.line.reply_check import ReplyCheck
from fedops_mqtt.line.wire import LineCompression, LineLimits
from fedops_mqtt.protocol import check_task_id, new_run_id
from fedops_mqtt.runtime.key_values import NUM_ROUNDS_KEY, Plain, parse_pairs
from fedops_mqtt.runtime.settings import FedOpsSettings, ServerSettings
from fedops_mqtt.runtime.task_config import entry

DEFAULT_NUM_ROUNDS = 3
"""Flower's own default (Flower 1.41 Strategy.start)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One run, as this launch of its server has to do it."""

    task_id: str
    run_id: str
    launch: int
    num_rounds: int
    is_num_rounds_set: bool
    """False: it is the default."""
    min_clients: int | None
    """None: it is not set, the strategy's own minimum counts."""
    join: Literal["invited", "open"]
    run_secret: bytes | None
    is_resumable: bool
    """Somebody else named the run, so it can be launched again."""
    run_config: Mapping[str, Plain] = field(default_factory=dict)
    """Settings of this run; they outweigh the project's configuration."""
    app_digest: str | None = None
    """Of the published app that the run trains with."""
    app_version: str | None = None

    @property
    def made_with(self) -> dict[str, Any]:
        """How it was made, for a model of this run and for the run on W&B."""
        return {"app_digest": self.app_digest, "app_version": self.app_version, "run_config": dict(self.run_config)}


def make_plan(settings: ServerSettings, cfg: Any) -> RunPlan:
    """Return the plan.

    Raises:
        ServerConfigError: no task id, or a value that cannot be used.
        IdentityError: the task id has another form.
    """
    is_launched = settings.run_id is not None

    run_config = parse_pairs(settings.run_config)

    def choose(given: Any, name: str) -> Any:
        configured = entry(cfg, name)
        first, second = (given, configured) if is_launched else (configured, given)
        return second if first is None else first

    task_id = choose(settings.task_id or FedOpsSettings().task_id, "task_id")
    if task_id is None:
        raise ServerConfigError("no task id: set FEDOPS_MQTT_TASK_ID, or task_id in cfg")
    run_secret = _read_secret(settings)
    num_rounds = run_config.get(NUM_ROUNDS_KEY, choose(settings.num_rounds, "num_rounds"))
    app = _read_app(settings.app_file) if settings.app_file else None
    return RunPlan(
        task_id=check_task_id(str(task_id)),
        run_id=settings.run_id or new_run_id(str(task_id)),
        launch=settings.launch,
        num_rounds=_positive("num_rounds", DEFAULT_NUM_ROUNDS if num_rounds is None else num_rounds),
        is_num_rounds_set=num_rounds is not None,
        min_clients=_positive("min_clients", choose(settings.min_clients, "min_clients")),
        join=settings.join if run_secret else "open",
        run_secret=run_secret,
        is_resumable=is_launched,
        run_config=run_config,
        app_digest=app.digest if app else None,
        app_version=app.version if app else None,
    )


def _read_app(path: Path) -> AppBundle:
    try:
        data = path.read_bytes()
        return read_bundle(data, limits=BundleLimits(packed_bytes=len(data)))
    except (OSError, AppRefusedError) as error:
        raise ServerConfigError(f"app_file {path}: {error}") from error


def make_limits(settings: ServerSettings) -> LineLimits:
    """Return the line's limits."""
    return LineLimits(
        join_s=settings.join_limit_s,
        round_s=settings.round_limit_s,
        run_s=settings.run_limit_s,
        rejoin_s=settings.rejoin_limit_s,
        ping_s=settings.line_ping_s,
        max_message_bytes=settings.max_message_bytes,
    )


def make_compression(settings: ServerSettings) -> LineCompression | None:
    """Return the line's compression; None where it is off."""
    if settings.compress_level == 0:
        return None
    return LineCompression(level=settings.compress_level, threshold_bytes=settings.compress_threshold_bytes)


def fit_config(cfg: Any, num_rounds: int) -> dict[str, bool | int | float | str]:
    """Return what FedOps sends its clients each round (server.app.FLServer.fit_config); empty without its cfg."""
    known = {"batch_size": entry(cfg, "batch_size"), "local_epochs": entry(cfg, "num_epochs")}
    config: dict[str, bool | int | float | str] = {name: int(value) for name, value in known.items() if value}
    return {**config, "num_rounds": num_rounds} if config else {}


def _read_secret(settings: ServerSettings) -> bytes | None:
    path = settings.run_secret_file
    if path is None:
        return None
    try:
        return bytes.fromhex(path.read_text(encoding="ascii").strip()) or None
    except (OSError, ValueError) as error:
        raise ServerConfigError(f"run secret file {path} cannot be used: {type(error).__name__}") from error


def _positive(name: str, value: Any) -> Any:
    """Return a whole number above 0, or None as it is."""
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise ServerConfigError(f"{name} is {value!r}, not a whole number") from error
    if number < 1:
        raise ServerConfigError(f"{name} is {number}, must be 1 or more")
    return number


def check_of(strategy: Strategy | ClassicStrategy | None, settings: ServerSettings) -> ReplyCheck:
    """Return the check; a strategy takes more by attributes named as the settings, `accept_any_shape = True`.

    None: a ServerApp's strategy, before it has started one.
    """
    chain = [strategy]
    while isinstance(inner := getattr(chain[-1], "strategy", None), Strategy | ClassicStrategy):  # a wrapper: privacy
        chain.append(inner)
    innermost = chain[-1]

    def accepts(name: str) -> bool:
        return getattr(settings, name) or any(getattr(each, name, False) is True for each in chain)

    is_classic = isinstance(innermost, ClassicStrategy)
    weight_key = "num_examples" if is_classic else getattr(innermost, "weighted_by_key", None)
    return ReplyCheck(
        any_shape=accepts("accept_any_shape"),
        nonfinite=accepts("accept_nonfinite"),
        weight_key=weight_key if isinstance(weight_key, str) else None,
        averaged=frozenset(kind for kind in ("train", "evaluate") if weight_key and _is_flowers(innermost, kind)),
    )


def _is_flowers(strategy: object, kind: str) -> bool:
    method = getattr(type(strategy), f"aggregate_{kind}", None)  # classic strategies have no aggregate_train
    return isinstance(strategy, Strategy) and str(getattr(method, "__module__", "")).startswith("flwr.")
