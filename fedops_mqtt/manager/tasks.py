"""`tasks.toml`: for each task how its FL server is launched and what a run of it needs when nobody says otherwise.

    [tasks.digits]
    module = "fedops_mqtt.demo.server"     # or command = ["python", "server.py"]
    num_rounds = 5
    min_clients = 3

Read when the manager starts, and again when the file has changed and a run is asked for. A task whose app was
published needs no table; the table [published] says what such tasks are like.
"""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedops_mqtt.manager.errors import TasksFileError, UnknownTaskError
from fedops_mqtt.protocol import TaskId
from fedops_mqtt.runtime.machine import HostAndPort, HttpAddress

Seconds = Annotated[float, Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskLimits(_Table):
    """What differs from the manager's own limits; names and meaning as in `settings.RunLimits`."""

    trigger_answer_s: Seconds | None = None
    trigger_retry_s: Seconds | None = None
    server_start_s: Seconds | None = None
    join_s: Seconds | None = None
    round_s: Seconds | None = None
    run_s: Seconds | None = None
    close_grace_s: Seconds | None = None
    server_lost_s: Seconds | None = None
    max_launches: Annotated[int, Field(ge=1)] | None = None
    max_attempts: Annotated[int, Field(ge=1)] | None = None

    @property
    def said(self) -> dict[str, float]:
        """The limits that are set."""
        return self.model_dump(exclude_none=True)


class TaskConfig(_Table):
    """One task.

    `command` is a list of arguments, `module` is run with the manager's own Python; a published app with a ServerApp
    takes their place. With neither, the server is started by somebody else, and `adopt` says that its announcement
    begins a run. `join` is `open` where clients that come
    later join a run that goes on. `cwd` and `config` are relative to the tasks file; `Tasks` makes them absolute.
    `config` is the server's own settings file, its bundle: with it the server gets none of the manager's credentials.
    """

    command: tuple[str, ...] | None = None
    module: str | None = None
    args: tuple[str, ...] = ()
    cwd: Path | None = None
    env: dict[str, str] = {}
    config: Path | None = None
    num_rounds: Annotated[int, Field(ge=1)] | None = None
    """None: as many as the server's own program or Flower project says."""
    min_clients: Annotated[int, Field(ge=1)] = 2
    join: Literal["invited", "open"] = "invited"
    adopt: bool = False
    listen: HttpAddress = "127.0.0.1:0"
    advertise: HostAndPort | None = None
    limits: TaskLimits = TaskLimits()

    @model_validator(mode="after")
    def _one_way_to_start(self) -> Self:
        if self.command and self.module:
            raise ValueError("give `command` or `module`, not both")
        return self

    @property
    def is_launchable(self) -> bool:
        """True when the manager can start this task's server."""
        return bool(self.command or self.module)


class _TasksFile(_Table):
    tasks: dict[TaskId, TaskConfig] = {}
    published: TaskConfig = TaskConfig()


class Tasks:
    """The tasks of a file, read again when it changes, and those with a current app in `published`."""

    def __init__(self, path: Path | None, *, published: Collection[str] = ()) -> None:
        self.path = path
        self._published = published
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
        return task_id in self._tasks or task_id in self._published

    def __getitem__(self, task_id: str) -> TaskConfig:
        """Return a task.

        Raises:
            UnknownTaskError: it is not in the file, and no app is published for it.
        """
        if task_id not in self:
            raise UnknownTaskError(task_id, sorted(self.by_id))
        return self._tasks.get(task_id, self._like)

    def get(self, task_id: str) -> TaskConfig | None:
        """Return a task, or None when there is none of that name."""
        like = self._like if task_id in self._published else None
        return self._tasks.get(task_id, like)

    @property
    def by_id(self) -> Mapping[str, TaskConfig]:
        """Every task."""
        return {**dict.fromkeys(self._published, self._like), **self._tasks}


def _parse(path: Path) -> tuple[Mapping[str, TaskConfig], TaskConfig]:
    """Return the tasks by id, and what a task is like that is published only."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        file = _TasksFile.model_validate(content)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TasksFileError(str(path), f"not TOML: {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in error.errors())
        raise TasksFileError(str(path), "; ".join(problems)) from error
    folder = path.resolve().parent

    def placed(task: TaskConfig) -> TaskConfig:
        update = {"cwd": folder / (task.cwd or ""), "config": task.config and folder / task.config}
        return task.model_copy(update=update)

    return {task_id: placed(task) for task_id, task in file.tasks.items()}, placed(file.published)
