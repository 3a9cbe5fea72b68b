"""`tasks.toml`: for each task how its FL server is launched, and the defaults of its runs.

    [tasks.digits]
    module = "fedops_mqtt.demo.server"     # or command = ["python", "server.py"]
    num_rounds = 5
    min_clients = 3

Read when the manager starts, and again when the file has changed and a run is asked for. A task whose app was
published needs no table; the table [published] has the defaults of such tasks.
"""

import difflib
import json
import shutil
import string
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.manager.errors import TasksFileError, UnknownTaskError
from fedops_mqtt.protocol import TaskId
from fedops_mqtt.protocol.wire import first_problem
from fedops_mqtt.runtime.machine import HostAndPort, HttpAddress

Text = TypeVar("Text", str, Path)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _without_nul(text: Text) -> Text:
    if "\0" in str(text):
        raise ValueError("it has a NUL character, which arguments, variables and paths cannot have: leave it out")
    return text


def _variable_name(name: str) -> str:
    if not name or "=" in name:
        raise ValueError(f'{name!r} is no name of a variable: write NAME = "value"')
    return name


Argument = Annotated[str, AfterValidator(_without_nul)]
FilePath = Annotated[Path, AfterValidator(_without_nul)]
VariableName = Annotated[Argument, AfterValidator(_variable_name)]


class KubernetesTask(_Table):
    """How a task's FL server runs as a Kubernetes Job.

    `pod` and `container` are parts of the pod's and the container's specification that are laid over ours, as the API
    spells them: resources, nodeSelector, volumes.
    """

    image: Annotated[str, Field(min_length=1)]
    namespace: str | None = None
    """None: that of the manager's own pod, or of the kubeconfig's context."""
    service_account: str | None = None
    pod: dict[str, JsonValue] = {}
    container: dict[str, JsonValue] = {}

    @field_validator("pod", "container")
    @classmethod
    def _lists_are_lists(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in ("containers", "volumes", "volumeMounts"):  # ours go before them
            if not isinstance(value.get(name, []), list):
                raise ValueError(f'`{name}` is a list: write {name} = [{{ name = "…" }}]')
        return value


COMMAND, SHELL_COMMAND = "{command}", "{shell_command}"
_IN_ALL = ("name", "run_id", "launch", "task_id")
_PLACEHOLDERS = {
    "launch": (*_IN_ALL, "command", "shell_command", "order_file"),
    "launch_stop": (*_IN_ALL, "command", "shell_command", "signal"),
    "launch_alive": (*_IN_ALL, "command", "shell_command"),
    "advertise": ("host", "address"),
}


class TaskConfig(_Table):
    """One task.

    `command` is a list of arguments, `module` is run with the manager's own Python; a published app with a ServerApp
    takes their place. With neither, the server is started by hand, and with `adopt` its announcement
    begins a run. `join` is `open` where clients that come
    later join a run that goes on. `cwd` and `config` are relative to the tasks file; `Tasks` makes them absolute.
    `config` is the server's own settings file, its bundle: with it the server gets none of the manager's credentials.
    """

    command: tuple[Argument, ...] | None = None
    module: Argument | None = None
    args: tuple[Argument, ...] = ()
    cwd: FilePath | None = None
    env: dict[VariableName, Argument] = {}
    config: FilePath | None = None
    num_rounds: Annotated[int, Field(ge=1)] | None = None
    """None: the number in the server's own program or Flower project."""
    min_clients: Annotated[int, Field(ge=1)] = 2
    join: Literal["invited", "open"] = "invited"
    adopt: bool = False
    listen: HttpAddress = "127.0.0.1:0"
    advertise: HostAndPort | None = None
    launch: tuple[Argument, ...] | None = None
    """A command that reaches the machine where the server runs; None: here."""
    launch_stop: tuple[Argument, ...] | None = None
    launch_alive: tuple[Argument, ...] | None = None
    """These two are as `launch` where that reaches the same machine each time."""
    kubernetes: KubernetesTask | None = None
    limits: RunLimits = RunLimits()
    """What is set here differs from the manager's own limits."""

    @field_validator("launch", "launch_stop", "launch_alive")
    @classmethod
    def _names_a_program(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or not value[0].strip()):
            raise ValueError("an empty list: give the program, then its arguments")
        return value

    @model_validator(mode="after")
    def _one_way_to_start(self) -> Self:
        if self.command and self.module:
            raise ValueError("give `command` or `module`, not both")
        if self.launch and self.kubernetes:
            raise ValueError("give `launch` or `kubernetes`, not both")
        if self.launch is None and (self.launch_stop or self.launch_alive):
            raise ValueError("`launch_stop` and `launch_alive` go with `launch`, which is not given")
        return self

    @model_validator(mode="after")
    def _has_known_placeholders(self) -> Self:
        for name, known in _PLACEHOLDERS.items():
            parts = getattr(self, name) or ()
            _check_placeholders(name, (parts,) if isinstance(parts, str) else parts, known)
        if any(form or how for _, _, form, how in string.Formatter().parse(self.advertise or "")):
            raise ValueError("`advertise`: a placeholder is a name alone, without `:` or `!`")
        if self.launch and not {"command", "shell_command", "order_file"} & _placeholders("".join(self.launch)):
            raise ValueError(f"`launch` starts nothing: one of its arguments has to be {COMMAND} or {SHELL_COMMAND}")
        for name in ("launch_stop", "launch_alive"):
            if self.launch and getattr(self, name) is None and "order_file" in _placeholders("".join(self.launch)):
                raise ValueError(f"`launch` with {{order_file}} needs a `{name}` of its own")
        return self

    @property
    def is_local(self) -> bool:
        """True when the server is a process of the manager's host."""
        return self.launch is None and self.kubernetes is None

    @property
    def is_launchable(self) -> bool:
        """True when the manager can start this task's server."""
        return bool(self.command or self.module)


class _StoredTask(TaskConfig):
    """A task that was stored with its run: what joins several keys was checked, by the rules of its time."""

    @model_validator(mode="after")
    def _one_way_to_start(self) -> Self:
        return self

    @model_validator(mode="after")
    def _has_known_placeholders(self) -> Self:
        return self


def read_stored_task(text: str) -> tuple[TaskConfig | None, str | None]:
    """Return a task as it was stored with its run, and what of it cannot be read; its run needs the rest.

    None for a task of which it is not known where its server runs.
    """
    try:
        return TaskConfig.model_validate_json(text), None
    except ValidationError as error:
        problem = first_problem(error, "task")
        wrong = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
    try:
        values = json.loads(text)
    except ValueError:
        return None, problem
    if not isinstance(values, dict) or wrong & {"launch", "kubernetes"}:
        return None, problem
    return _StoredTask.model_validate({name: value for name, value in values.items() if name not in wrong}), problem


def _placeholders(text: str) -> set[str]:
    """Return the names in a template.

    Raises:
        ValueError: a brace begins or ends none.
    """
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def _check_placeholders(key: str, parts: Collection[str], known: Collection[str]) -> None:
    tried = {name: "1" for name in known if name != "command"}
    for part in parts:
        try:
            names = _placeholders(part)
            unknown = sorted(names - set(known))
            if not unknown and "command" not in names:
                part.format_map(tried)  # a shell's `${name:-x}` is no format
        except (KeyError, ValueError) as error:
            raise ValueError(f"`{key}`: {part!r}: {error} (a brace itself is written twice: {{{{ or }}}})") from error
        if unknown:
            there = ", ".join(f"{{{name}}}" for name in known)
            raise ValueError(f"`{key}`: {{{unknown[0]}}} is unknown; there are {there}")
        if part != COMMAND and "command" in names:
            raise ValueError(f"`{key}`: {COMMAND} stands alone as an argument; inside of one write {SHELL_COMMAND}")


class _TasksFile(_Table):
    tasks: dict[TaskId, TaskConfig] = {}
    published: TaskConfig = TaskConfig()


class Tasks:
    """The tasks of a file, read again when it changes, and those with a current app in `published`."""

    def __init__(self, path: Path | None, *, published: Collection[str] = ()) -> None:
        self.path = path
        self.published = published
        self._like = TaskConfig()
        self._read_at: tuple[int, int] | None = None
        self._tasks: Mapping[str, TaskConfig] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the file if it is not as it was.

        Raises:
            TasksFileError: it cannot be read; the tasks known so far stay.
        """
        if self.path is None:
            return
        try:
            found = self.path.stat()
            if (found.st_mtime_ns, found.st_size) == self._read_at:
                return
            self._tasks, self._like = _parse(self.path)
        except OSError as error:
            raise TasksFileError(str(self.path), f"cannot be read: {error.strerror}") from error
        self._read_at = (found.st_mtime_ns, found.st_size)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._tasks or task_id in self.published

    def __getitem__(self, task_id: str) -> TaskConfig:
        """Return a task.

        Raises:
            UnknownTaskError: it is not in the file, and no app is published for it.
        """
        if task_id not in self:
            raise UnknownTaskError(task_id, sorted(self.by_id))
        return self._tasks.get(task_id, self._like)

    def get(self, task_id: str) -> TaskConfig | None:
        """Return a task by its id, or None."""
        like = self._like if task_id in self.published else None
        return self._tasks.get(task_id, like)

    @property
    def by_id(self) -> Mapping[str, TaskConfig]:
        """Every task."""
        return {**dict.fromkeys(self.published, self._like), **self._tasks}


def _explain(problem: ErrorDetails) -> str:
    if problem["type"] != "extra_forbidden":
        return problem["msg"]
    *table, key = problem["loc"]
    models: dict[str, type[BaseModel]] = {"limits": RunLimits, "kubernetes": KubernetesTask}
    model = models.get(str(table[-1]), TaskConfig) if table else _TasksFile
    close = difflib.get_close_matches(str(key), model.model_fields, n=1)
    return "there is no such key" + (f", perhaps {close[0]!r} is meant" if close else "")


def _parse(path: Path) -> tuple[Mapping[str, TaskConfig], TaskConfig]:
    """Return the tasks by id, and what a task is like that is published only."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        file = _TasksFile.model_validate(content)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TasksFileError(str(path), f"not TOML: {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, each['loc'])) or 'file'}: {_explain(each)}" for each in error.errors())
        raise TasksFileError(str(path), "; ".join(problems)) from error
    folder = path.resolve().parent

    def placed(task: TaskConfig, where: str) -> TaskConfig:
        for name in ("launch", "launch_stop", "launch_alive"):
            command = getattr(task, name)
            if command and "{" not in command[0] and shutil.which(command[0]) is None:
                raise TasksFileError(
                    str(path), f"{where}: `{name}`: there is no program {command[0]!r} on this machine"
                )
        # A server elsewhere has folders of its own; `config` is read here and handed over.
        cwd = folder / (task.cwd or "") if task.is_local else task.cwd
        return task.model_copy(update={"cwd": cwd, "config": task.config and folder / task.config})

    tasks = {task_id: placed(task, f"tasks.{task_id}") for task_id, task in file.tasks.items()}
    return tasks, placed(file.published, "published")
