"""The model store: every global model of a task as `{store}/{task_id}/{model_name}_gl_model_V{n}.safetensors`.

A version is written once and never changed; a corrupt one is passed over for the one before, and that is logged.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from fedops_mqtt.protocol import IdentityError, check_run_id, check_task_id, utc_now
from fedops_mqtt.store.errors import CorruptFileError
from fedops_mqtt.store.folder import open_folder
from fedops_mqtt.store.tensor_file import SUFFIX, Arrays, read_facts, read_tensors, write_tensors

MADE_WITH = ("app_digest", "app_version", "run_config")
"""What a model's file records of the run that made it, beside the run's id."""

_log = logging.getLogger(__name__)

_FILE = re.compile(rf"(?P<name>.+)_gl_model_(?:V(?P<version>[1-9]\d{{0,17}})|failed_(?P<run>.+)){re.escape(SUFFIX)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """One version of a global model, as it was read or written."""

    model_name: str
    version: int
    path: str
    arrays: Arrays
    run_id: str | None = None
    """The run that made it."""
    round: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """The app (`app_digest`, `app_version`) and the `run_config` of that run."""
    passed_over: tuple[str, ...] = ()
    """Paths of newer versions that are corrupt."""
    outcome: str = ""
    """How that run ended, `completed` or `stopped`; empty where it is unknown."""
    origin: str | None = None
    """The version or failed run that it was made of again (`fedops-mqtt model rollback`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a task's models, by its header; `version` is 0 and `run_id` set where it is a failed run's."""

    model_name: str
    version: int
    run_id: str | None
    path: str
    facts: Mapping[str, Any]
    problem: str | None = None
    """Why the header cannot be read."""


def list_model_files(url: str, task_id: str) -> list[ModelFile]:
    """Return every model file of a task, by name and version; contents are not verified.

    Raises:
        OSError: the place cannot be read.
    """
    folder = open_folder(f"{url.rstrip('/')}/{check_task_id(task_id)}")
    found = []
    for match in filter(None, map(_FILE.fullmatch, folder.names())):
        facts, problem = {}, None
        try:
            with folder.open(match[0]) as file:
                facts = read_facts(file)
        except ValueError as error:
            problem = f"its header cannot be read: {error}"
        found.append(
            ModelFile(
                model_name=match["name"],
                version=int(match["version"] or 0),
                run_id=match["run"] or facts.get("run_id"),
                path=str(folder.locate(match[0])),
                facts=facts,
                problem=problem,
            )
        )
    return sorted(found, key=lambda file: (file.model_name, file.version, file.run_id or ""))


class ModelStore:
    """The versions of one model of one task.

    Raises:
        IdentityError: `task_id` or `model_name` has a form that could be more than one file name.
        StoreUrlError: `url` names no place that is supported.
    """

    def __init__(self, url: str, *, task_id: str, model_name: str) -> None:
        self.model_name = check_model_name(model_name)
        self._folder = open_folder(f"{url.rstrip('/')}/{check_task_id(task_id)}")
        self._pattern = re.compile(rf"{re.escape(model_name)}_gl_model_V([1-9]\d{{0,17}}){re.escape(SUFFIX)}")

    def versions(self) -> list[int]:
        """Return the numbers of all versions, corrupt ones among them, in order."""
        found = (self._pattern.fullmatch(name) for name in self._folder.names())
        return sorted(int(match[1]) for match in found if match)

    def next_version(self) -> int:
        """Return the number that the next saved version gets if no other writer saves before."""
        return max(self.versions(), default=0) + 1

    def newest(self) -> StoredModel | None:
        """Return the newest version that is whole; corrupt ones above it are logged and listed in `passed_over`."""
        passed_over: list[str] = []
        for version in reversed(self.versions()):
            try:
                return self._read(version, tuple(passed_over))
            except CorruptFileError as error:
                _log.warning("global model passed over", extra={"path": error.path, "problem": error.problem})
                passed_over.append(error.path)
            except FileNotFoundError:  # removed between listing and reading
                continue
        return None

    def load(self, version: int) -> StoredModel:
        """Return one version.

        Raises:
            CorruptFileError: it is not what was written.
            FileNotFoundError: there is no version of that number.
        """
        return self._read(version, ())

    def check_writable(self, num_bytes: int) -> None:
        """Check that a file of this size can be stored now.

        Raises:
            OSError: it cannot; it carries why.
        """
        self._folder.check_writable(num_bytes)

    def load_failed(self, run_id: str) -> StoredModel:
        """Return a failed run's model, as version 0. Raises as `load`."""
        return self._read(0, (), self._failed_name(run_id))

    def save_failed(
        self,
        arrays: Mapping[str, NDArray[Any]],
        *,
        run_id: str,
        round: int = 0,
        metrics: Mapping[str, float] | None = None,
        made_with: Mapping[str, Any] | None = None,
    ) -> StoredModel:
        """Keep a failed run's model beside the versions, as version 0: no run begins from it. Raises as `save`."""
        about = self._facts(run_id, round, metrics, made_with)
        path = self._folder.replace(self._failed_name(run_id), lambda path: write_tensors(path, arrays, about))
        _log.info("model of the failed run saved", extra={"path": str(path)})
        return _stored(self.model_name, 0, str(path), dict(arrays), about, ())

    def save(
        self,
        arrays: Mapping[str, NDArray[Any]],
        *,
        run_id: str | None = None,
        round: int = 0,
        metrics: Mapping[str, float] | None = None,
        made_with: Mapping[str, Any] | None = None,
        outcome: str = "",
        origin: str | None = None,
    ) -> StoredModel:
        """Write the next version; where another server takes the number first, the one after it.

        Raises:
            UnsupportedArrayError: an array cannot be stored without pickle.
            OSError: the place cannot be written to.
        """
        facts = {**self._facts(run_id, round, metrics, made_with), "outcome": outcome, "origin": origin}
        version = self.next_version()
        while True:
            try:
                path = self._folder.create(self._name(version), lambda path: write_tensors(path, arrays, facts))
            except FileExistsError:
                version += 1
                continue
            _log.info("global model saved", extra={"path": str(path), "version": version})
            return _stored(self.model_name, version, str(path), dict(arrays), facts, ())

    def _read(self, version: int, passed_over: tuple[str, ...], name: str | None = None) -> StoredModel:
        name = name or self._name(version)
        path = self._folder.locate(name)
        with self._folder.reading(name) as copy:
            arrays, facts = read_tensors(copy, shown_as=str(path))
        return _stored(self.model_name, version, str(path), arrays, facts, passed_over)

    def _facts(
        self, run_id: str | None, round: int, metrics: Mapping[str, float] | None, made_with: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        facts = {"model_name": self.model_name, "run_id": run_id, "round": round, "metrics": dict(metrics or {})}
        return {**facts, "at": f"{utc_now():%Y-%m-%dT%H:%M:%SZ}", **(made_with or {})}

    def _name(self, version: int) -> str:
        return f"{self.model_name}_gl_model_V{version}{SUFFIX}"

    def _failed_name(self, run_id: str) -> str:
        return f"{self.model_name}_gl_model_failed_{check_run_id(run_id)}{SUFFIX}"


def check_model_name(model_name: str) -> str:
    """Return `model_name` if it can stand in a file name; the form is that of a task id.

    Raises:
        IdentityError: it has other characters.
    """
    try:
        return check_task_id(model_name)
    except IdentityError as error:
        raise IdentityError("model_name", model_name, error.expected) from None


def _stored(
    model_name: str, version: int, path: str, arrays: Arrays, facts: Mapping[str, Any], passed_over: tuple[str, ...]
) -> StoredModel:
    return StoredModel(
        model_name=model_name,
        version=version,
        path=path,
        arrays=arrays,
        run_id=facts.get("run_id"),
        round=facts.get("round", 0),
        metrics=facts.get("metrics", {}),
        made_with={name: facts[name] for name in MADE_WITH if facts.get(name)},
        passed_over=passed_over,
        outcome=facts.get("outcome") or "",
        origin=facts.get("origin"),
    )
