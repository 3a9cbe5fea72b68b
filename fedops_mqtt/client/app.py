"""The front of a client: `FLClientTask` as FedOps documents it, and `run_client` for a program that has settings.

An app that stands in a module is imported by the training process; live objects are sent to it, on this machine only.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fedops_mqtt.bus import BrokerUrlError, ConflictingInstanceError, EpochFileError
from fedops_mqtt.client.client_api import publishing_through
from fedops_mqtt.client.client_managers import ClientManagers
from fedops_mqtt.client.client_utils import FLClientStatus, NoMacAddressError, view_of
from fedops_mqtt.device.daemon import Daemon, Notice
from fedops_mqtt.device.identity import ClientConfigError, ShimAddressError
from fedops_mqtt.device.journal import DaemonRunningError
from fedops_mqtt.device.trainer import Trainer
from fedops_mqtt.device.training_process import check_app
from fedops_mqtt.protocol import MetricsCutter, MetricsKind, Outcome, TaskId, clip
from fedops_mqtt.runtime.background import alongside
from fedops_mqtt.runtime.machine import AccessConfigError
from fedops_mqtt.runtime.settings import IS_DELIVERED, ClientSettings
from fedops_mqtt.runtime.systemd import ExitCode, exit_code_of_disk, on_end_signal
from fedops_mqtt.runtime.task_config import Scalar, flatten, read_configuration
from fedops_mqtt.training.live_task import LIVE, LiveFile, pack
from fedops_mqtt.training.pipe import MetricsReport


class FedOpsAttachment:
    """The FedOps side of one daemon, as its settings ask for it."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._managers = ClientManagers.from_settings(settings, settings.task_id or "")

    @asynccontextmanager
    async def serving(self, daemon: Daemon) -> AsyncIterator[str | None]:
        """Serve the shim while the block runs; yields its `host:port`, or None where the settings ask for none.

        Raises:
            ShimAddressError: the address is taken, none of this machine's, or beyond it and open to anybody.
        """
        settings = self._settings
        if settings.http is None:
            yield None
            return
        # Here, not above: FastAPI is a fifth of an idle daemon, and most devices never listen.
        from fedops_mqtt.client.http_shim import access_rules, allowed_servers, make_shim, serving

        shim = make_shim(
            view=lambda: view_of(daemon.client),
            start=daemon.start,
            managers=self._managers,
            may_start_at=allowed_servers(settings),
            starts_by_get=settings.http_get_start,
            takes_any_mac=settings.http_any_mac,
        )
        async with serving(shim, settings.http, access_rules(settings)) as address:
            yield address

    async def notify(self, notice: Notice) -> None:
        """Report an end to FedOps' client manager, where there is one."""
        await self._managers.notify(notice)


logger = logging.getLogger(__name__)

MAKE_REGISTER = "fedops_mqtt.client.registered_client:make_register"
"""What makes clients of registered models in the training process, which imports it at the first one."""

_SETTINGS_OF_CFG = {"task_id": "task_id", "wandb.project": "wandb_project", "wandb.key": "wandb_key"}
"""FedOps' names in a configuration, and the setting that each is."""
_SECRETS_OF_CFG = ("wandb.key",)


class AppPathError(ValueError):
    """An app object cannot be imported by the training process."""

    def __init__(self, app: object, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"fl_task is a {type(app).__name__} that the training process cannot import: {problem}. "
            "Put it into a module of its own, say my_task.py, and pass 'my_task:app' or the object imported from there"
        )


class FLClientTask:
    """A FedOps client (FedOps client.app.FLClientTask): its configuration and what it trains.

    `cfg` is a mapping, a YAML file's path, or any object with attributes (FedOps' Hydra configuration); `task_id` and
    `wandb` in it are settings, all of it reaches the app as `Context.run_config` with names joined by dots. `fl_task`
    is MODULE:ATTRIBUTE, an app, or FedOps' registration: a dict of `model`, `model_name`, and what `cfg.model_type`
    asks for. Live objects are pickled for the training process when this is made: it trains what they are now. `xai`
    is FedOps' and has no effect. `settings` are `ClientSettings` by name; they outweigh `cfg`, and `cfg` outweighs the
    environment.

    Raises:
        ClientConfigError, ConfigurationError, LiveTaskError, NoMacAddressError, BrokerUrlError: what the caller can put
            right.
    """

    def __init__(self, cfg: Any, fl_task: object = None, xai: bool = False, **settings: Any) -> None:
        unknown = sorted(set(settings) - set(ClientSettings.model_fields))
        if unknown:
            raise TypeError(f"FLClientTask has no setting {unknown[0]!r}; see ClientSettings")
        self.cfg = read_configuration(cfg)
        values = flatten(self.cfg)
        run_config = {name: value for name, value in values.items() if name not in _SECRETS_OF_CFG}
        app = None if fl_task is None else _app_of(fl_task)
        self.settings = ClientSettings(**_settings_in(values) | ({"app": app} if app else {}) | settings)
        self._live_task: LiveFile | None = None
        if app == LIVE:
            self._live_task = pack(fl_task, self.cfg, self.settings.state_dir)
        self.daemon = Daemon(
            self.settings,
            import_paths=_import_paths(),
            run_config=run_config,
            make_trainer=self._make_trainer,
            attachment=FedOpsAttachment(self.settings),
        )
        if xai:
            logger.warning("xai has no effect here: explain the model in test_torch or in a program of its own")

    def _make_trainer(self, **parts: Any) -> Trainer:
        live_task = self._live_task.fileno() if self._live_task else None
        self._trainer = Trainer(live_task=live_task, register=MAKE_REGISTER, **parts)
        return self._trainer

    @property
    def task_id(self) -> TaskId:
        """The task that this client serves."""
        return self.daemon.identity.task_id

    @property
    def status(self) -> FLClientStatus:
        """This client under FedOps' names, as it is now."""
        return view_of(self.daemon.client)

    async def fl_client_start(self) -> None:
        """Serve in the caller's event loop until asked to leave; the caller's own coroutines run beside it.

        Raises:
            DaemonRunningError, ConflictingInstanceError, ShimAddressError, OSError: see `Daemon.run`.
            ClientConfigError: the app cannot be imported.
        """
        backend = DaemonBackend(self.daemon, self._trainer, asyncio.get_running_loop())
        with on_end_signal(partial(_leave, self.daemon)), publishing_through(backend):
            async with _app_checked(self.daemon, _import_paths()):
                await self.daemon.run()

    def start(self) -> None:
        """Serve until SIGTERM, SIGHUP or Ctrl-C; blocks.

        Raises:
            SystemExit: it ended with something else than success, which was logged; the code is an `ExitCode`.
        """
        if not logging.getLogger().handlers:
            logging.basicConfig(level=self.settings.log_level, format="%(asctime)s %(levelname)-7s %(message)s")
        code = asyncio.run(_exit_code_of(self.fl_client_start()))
        if code is not ExitCode.OK:
            raise SystemExit(code)


class DaemonBackend:
    """FedOps' APIs in the process of a daemon (a `ClientBackend`)."""

    def __init__(self, daemon: Daemon, trainer: Trainer, loop: asyncio.AbstractEventLoop) -> None:
        self._daemon = daemon
        self._trainer = trainer
        self._loop = loop
        self._cutter = MetricsCutter(logger.warning)

    @property
    def gl_model(self) -> int:
        """Number of the global model that the last start gave."""
        return self._daemon.client.facts.gl_model

    @property
    def server_ip(self) -> str | None:
        """`host:port` of the FL server of the last start."""
        return self._daemon.client.server_ip

    def publish_metrics(self, kind: MetricsKind, round_: int, values: dict[str, Scalar]) -> None:
        """Publish one metrics message."""
        report = MetricsReport(kind=kind, round=round_, values=self._cutter.cut(values))
        self._loop.call_soon_threadsafe(self._daemon.publish_metrics, report)

    def end_training(self, outcome: Outcome, reason: str | None) -> None:
        """End the current training, with this result."""
        self._loop.call_soon_threadsafe(self._trainer.end, outcome, reason)

    def leave(self) -> None:
        """Leave."""
        self._loop.call_soon_threadsafe(self._daemon.leave)


async def run_client(settings: ClientSettings) -> int:
    """Serve one client until SIGTERM, SIGHUP or Ctrl-C and return the exit code; what went wrong is in the log."""
    try:
        make_trainer = partial(Trainer, register=MAKE_REGISTER)
        attachment = FedOpsAttachment(settings)
        daemon = Daemon(settings, import_paths=(os.getcwd(),), make_trainer=make_trainer, attachment=attachment)
    except (ClientConfigError, NoMacAddressError, BrokerUrlError) as error:
        logger.error("%s", error)
        return ExitCode.CONFIG

    async def serve() -> None:
        with on_end_signal(partial(_leave, daemon)):
            async with _app_checked(daemon, (os.getcwd(),)):
                await daemon.run()

    return await _exit_code_of(serve())


@asynccontextmanager
async def _app_checked(daemon: Daemon, import_paths: Sequence[str]) -> AsyncIterator[None]:
    """Import the app in a process of its own beside the block; where that fails the daemon leaves, with the reason.

    Raises:
        ClientConfigError: it failed.
    """
    app, problems = daemon.settings.app, list[str]()

    async def check() -> None:
        if app is None or app in (LIVE, *IS_DELIVERED) or not daemon.settings.check_app:
            return
        if problem := await check_app(app, import_paths, state_folder=daemon.settings.state_dir):
            problems.append(problem)
            daemon.leave(clip(problem))

    async with alongside(check(), name="app-check"):
        yield
    for problem in problems:
        raise ClientConfigError("app", problem)


async def _exit_code_of(serving: Any) -> ExitCode:
    try:
        await serving
    except ConflictingInstanceError as error:
        logger.error("%s", error)
        return ExitCode.CONFLICT
    except (ClientConfigError, DaemonRunningError, AccessConfigError, BrokerUrlError) as error:
        logger.error("%s", error)
        return ExitCode.CONFIG
    except ShimAddressError as error:
        logger.error("%s", error)
        return ExitCode.UNAVAILABLE
    except EpochFileError as error:
        logger.error("%s", error)
        return exit_code_of_disk(error.__cause__)
    except OSError as error:
        logger.error("the state folder cannot be used: %s", error)
        return exit_code_of_disk(error)
    return ExitCode.OK


def _leave(daemon: Daemon, number: signal.Signals) -> None:
    logger.info("asked to leave", extra={"signal": number.name})
    asyncio.get_running_loop().remove_signal_handler(number)  # a second one has its usual effect
    daemon.leave()


def _settings_in(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {setting: values[name] for name, setting in _SETTINGS_OF_CFG.items() if values.get(name) is not None}
    if values.get("wandb.use") is False:
        found = {name: value for name, value in found.items() if not name.startswith("wandb")}
    return found


def _app_of(fl_task: object) -> str:
    """Return an app's import path, or that it has none: a registration is alive, and so is an app in the script."""
    if isinstance(fl_task, Mapping):
        return LIVE
    try:
        return import_path_of(fl_task)
    except AppPathError:
        return LIVE


def import_path_of(fl_task: object) -> str:
    """Return `MODULE:ATTRIBUTE` of an app: a string is one already, an object is looked for in the loaded modules.

    Raises:
        AppPathError: it stands in no module, or only in the script that was started.
    """
    if isinstance(fl_task, str):
        return fl_task
    if isinstance(fl_task, Mapping):
        raise AppPathError(fl_task, "a registration of live models and loaders has no import path")
    name = getattr(fl_task, "__qualname__", None)
    home = getattr(fl_task, "__module__", None)
    if isinstance(name, str) and isinstance(home, str) and "<locals>" not in name and home != "__main__":
        return f"{home}:{name}"
    places = list(_places_of(fl_task))
    if not places:
        raise AppPathError(fl_task, "no loaded module has it as an attribute")
    importable = [place for place in places if not _is_started_script(place.partition(":")[0])]
    if not importable:
        raise AppPathError(fl_task, "it stands in the script that was started, which would be started a second time")
    return min(importable, key=len)


def _places_of(fl_task: object) -> Iterator[str]:
    for module_name, module in list(sys.modules.items()):
        for name, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
            if value is fl_task:
                yield f"{module_name}:{name}"


def _is_started_script(module_name: str) -> bool:
    """Return whether a module is the script, under whichever name (multiprocessing gives it a second one)."""
    return sys.modules.get(module_name) is sys.modules["__main__"]


def _import_paths() -> tuple[str, ...]:
    """Return where the user's modules are: beside the script that was started, and in the present folder."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    beside = (str(Path(script).resolve().parent),) if script else ()
    return tuple(dict.fromkeys((*beside, os.getcwd())))
