"""The user's app in the training process: found by its import path, made a ClientApp, given its Context.

Whatever the user's code raises while it is loaded becomes an `AppError` with a sentence that names what to change.
"""

import hashlib
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp

from fedops_mqtt.line.codec import EncodedContent, encode_content, encode_message, read_message
from fedops_mqtt.line.errors import LineError
from fedops_mqtt.model_types import RegistrationError
from fedops_mqtt.protocol import describe_error, name_error
from fedops_mqtt.runtime.extras import how_to_install
from fedops_mqtt.runtime.key_values import ProjectError, project_config
from fedops_mqtt.runtime.task_config import nest
from fedops_mqtt.training.live_task import unpack
from fedops_mqtt.training.numpy_clients import AnyServerApp
from fedops_mqtt.training.pipe import Job

logger = logging.getLogger(__name__)

_KINDS = (
    "a flwr ClientApp, a NumPyClient or Client (class or object), a function that makes one from a Context, "
    "or FedOps' registration (a dict, or a function that makes one)"
)
Register = Callable[[Mapping[str, Any]], NumPyClient]
MakeRegister = Callable[[Job, Any], Register]
"""Makes, for a job and its configuration, what makes a client of a registered model."""
_MAX_STATE_BYTES = 4 * 1024**3
_NOBODY = 0
"""Receiver of a message that never leaves the disk."""


class AppError(Exception):
    """The user's app cannot be loaded; `reason` also has the traceback of what the user's code `raised`."""

    def __init__(self, spec: str, problem: str, raised: BaseException | None = None) -> None:
        self.spec = spec
        self.problem = problem if raised is None else f"{problem} {name_error(raised)}"
        message = f"cannot load app {spec!r}: {self.problem}"
        self.reason = message if raised is None else describe_error(raised, message)
        super().__init__(message)


def check_app(spec: str, import_paths: Sequence[str]) -> None:
    """Import an app, and look at what it is; nothing of it is called.

    Raises:
        AppError: it is missing, or it is nothing that a ClientApp can be made of.
    """
    sys.path[:0] = [path for path in import_paths if path not in sys.path]
    _check_kind(spec, _find(spec))


def load_app(job: Job, make_register: MakeRegister) -> ClientApp:
    """Return the ClientApp that a job is about: live objects, or what its `MODULE:ATTRIBUTE` names.

    `make_register` gives an app that is a function what it registers its model with.

    Raises:
        AppError: it is missing, or it is nothing that a ClientApp can be made of.
    """
    sys.path[:0] = [path for path in job.import_paths if path not in sys.path]
    importlib.invalidate_caches()
    if job.live_task is None:
        return _as_client_app(job.app, _find(job.app), make_register(job, nest(job.run_config)))
    fl_task, cfg = _unpack(job.live_task)
    return _as_client_app("fl_task", fl_task, make_register(job, cfg))


def _find(spec: str) -> Any:
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise AppError(spec, "expected MODULE:ATTRIBUTE, such as my_project.client:app")
    found: Any = _import(spec, module_name)
    for name in attribute.split("."):
        found = _attribute(spec, found, name)
    return found


def _unpack(descriptor: int) -> tuple[Any, Any]:
    try:
        return unpack(descriptor)
    except Exception as error:  # what the user's objects do when they come to life again
        logger.exception("fl_task could not be read")
        advice = "pass an import path instead, such as 'my_task:make_fl_task'"
        raise AppError("fl_task", f"the objects could not be made again ({advice}):", error) from error


def _import(spec: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            where = ", ".join(path or os.getcwd() for path in sys.path[:3])
            raise AppError(spec, f"no module named {error.name!r} (looked in {where}, …)") from error
        raise AppError(spec, f"it imports {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:
        logger.exception("the app's module raised")
        raise AppError(spec, "importing it raised", error) from error


def _attribute(spec: str, found: Any, name: str) -> Any:
    try:
        return getattr(found, name)
    except AttributeError as error:
        raise AppError(spec, f"{getattr(found, '__name__', found)!r} has no {name!r}") from error
    except Exception as error:  # a module's __getattr__ is the user's code too
        logger.exception("the app's module raised")
        raise AppError(spec, f"looking up {name!r} raised", error) from error


def _as_client_app(spec: str, found: Any, register: Register) -> ClientApp:
    if isinstance(found, ClientApp):
        return found
    if isinstance(found, Mapping):
        return _app_of_client(_registered(spec, found, register), is_registered=True)
    if isinstance(found, NumPyClient | Client):
        return _app_of_client(found)
    _check_kind(spec, found)
    if _takes_context(found):
        return _app_of_factory(found, register)
    return _as_client_app(spec, _make(spec, found), register)


def _check_kind(spec: str, found: Any) -> None:
    if not isinstance(found, ClientApp | Mapping | NumPyClient | Client) and not callable(found):
        raise AppError(spec, f"it is {type(found).__name__}, expected {_KINDS}")
    if isinstance(found, type) and not issubclass(found, NumPyClient | Client):
        raise AppError(spec, f"it is the class {found.__name__}, expected {_KINDS}")


def _registered(spec: str, registration: Mapping[str, Any], register: Register) -> NumPyClient:
    try:
        return register(registration)
    except RegistrationError as error:
        raise AppError(spec, str(error)) from error
    except ModuleNotFoundError as error:
        raise AppError(spec, how_to_install(error)) from error


def _takes_context(factory: Callable[..., Any]) -> bool:
    parameters = inspect.signature(factory).parameters.values()
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(each.default is each.empty and each.kind not in many for each in parameters)


def _make(spec: str, factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except (Exception, SystemExit) as error:
        logger.exception("the app's factory raised")
        raise AppError(spec, "calling it raised", error) from error


def _app_of_client(client: NumPyClient | Client, *, is_registered: bool = False) -> ClientApp:
    """Serve every message with one client, as `flwr.client.start_client(client=…)` does: it may keep its model."""
    one = _as_client(client)
    return AnyServerApp(lambda context: one, is_registered=is_registered)


def _app_of_factory(factory: Callable[[Any], Any], register: Register) -> ClientApp:
    """Ask a function for its client at each message, as Flower does; a registration it is asked for only once."""
    registered: list[Client] = []
    first = next(iter(inspect.signature(factory).parameters.values()))
    takes_cid = first.annotation in (str, "str") or first.name == "cid"

    def make(context: Context) -> Client:
        if registered:
            return registered[0]
        made = factory(_cid_of(context) if takes_cid else context)
        if not isinstance(made, Mapping):
            return _as_client(made)
        registered.append(_as_client(_registered("fl_task", made, register)))
        return registered[0]

    return AnyServerApp(make)


def _cid_of(context: Context) -> Any:
    """Return what Flower gives a `client_fn(cid: str)` of its older versions (Flower 1.41 ClientApp)."""
    return str(context.node_config.get("partition-id", context.node_id))


def _as_client(made: Any) -> Client:
    client = made.to_client() if isinstance(made, NumPyClient) else made
    if not isinstance(client, Client):
        raise TypeError(f"client_fn returned {type(client).__name__}, expected a NumPyClient or Client")
    return client


def make_node_config(job: Job) -> dict[str, bool | float | int | str]:
    """Return what a SuperNode's `--node-config` would hold, and which client this is."""
    config: dict[str, bool | float | int | str] = {
        "client-mac": job.identity.client_mac,
        "client-name": job.identity.client_name,
    }
    config |= {name: value for name, value in job.node_config.items() if value is not None}
    if job.partition_id is not None:
        config["partition-id"] = job.partition_id
    if job.num_partitions is not None:
        config["num-partitions"] = job.num_partitions
    return config


def make_run_config(values: Mapping[str, Any]) -> dict[str, bool | float | int | str]:
    """Return the configuration for `Context.run_config`; it has no place for None."""
    return {name: value for name, value in values.items() if value is not None}


def run_config_of(job: Job) -> dict[str, bool | float | int | str]:
    """Return `Context.run_config` of a job: the app project's configuration, overridden by the user's.

    Raises:
        AppError: the project's file cannot be used.
    """
    try:
        own = {} if job.live_task is not None else project_config(job.app.partition(":")[0])
    except ProjectError as error:
        raise AppError(job.app, str(error)) from error
    return {**own, **make_run_config(job.run_config)}


class KeptState:
    """`Context.state` in a file: there again in the next run, never pickled, written only when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: bytes | None = None

    def load(self) -> RecordDict:
        """Return what was kept; an empty state when there is nothing, or nothing that can be read."""
        try:
            num_bytes = self._path.stat().st_size
            with self._path.open("rb") as file:
                content = read_message(file.read, num_bytes=num_bytes, max_bytes=_MAX_STATE_BYTES).content
        except FileNotFoundError:
            return RecordDict()
        except (OSError, EOFError, LineError) as error:
            logger.warning("kept state cannot be read, starting without it", extra={"why": str(error)})
            return RecordDict()
        return content

    def save(self, state: RecordDict) -> None:
        """Keep `state`; a disk that is full costs the state, not the training."""
        if not state and not self._path.exists():
            return
        content = encode_content(state)
        digest = _digest(content)
        if digest == self._written:
            return
        frame = encode_message(Message(content=state, dst_node_id=_NOBODY, message_type="train"), content)
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            with fresh.open("wb") as file:
                file.writelines(frame.chunks(max_bytes=frame.num_bytes))
            fresh.replace(self._path)
            self._written = digest
        except OSError as error:
            logger.warning("state cannot be kept", extra={"why": str(error)})


def _digest(content: EncodedContent) -> bytes:
    hashing = hashlib.blake2b(content.header)
    for buffer in content.buffers:
        hashing.update(buffer)
    return hashing.digest()


class Keeping:
    """A ClientApp whose `Context.state` is kept after every message, and whose failure is remembered."""

    def __init__(self, app: Callable[[Message, Context], Message], kept: KeptState) -> None:
        self._app = app
        self._kept = kept
        self.failure: str | None = None
        """What the app raised; the server may end the run before it has read that."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; the state is kept also when the app is killed in the next."""
        try:
            reply = self._app(message, context)
        except (Exception, SystemExit) as error:
            self.failure = describe_error(error)
            raise
        self._kept.save(context.state)
        return reply
