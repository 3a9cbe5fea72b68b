"""The verbs about a task's stored models: model list, show, rollback.

They read the store itself, wherever it is; no manager is asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click import UsageError

from fedops_mqtt.cli.options import Json, add_verbs, shows, takes_settings
from fedops_mqtt.cli.output import FatalError, as_pairs, print_records, print_records_as_lines
from fedops_mqtt.runtime.settings import ModelSettings
from fedops_mqtt.runtime.systemd import ExitCode

if TYPE_CHECKING:
    from fedops_mqtt.store.versions import ModelFile, ModelStore, StoredModel

_COLUMNS = ("model", "version", "status", "run_id", "round", "metrics", "saved_at", "origin")

Task = Annotated[str, typer.Argument(metavar="TASK", help="The task whose models they are.")]
Name = Annotated[str | None, typer.Option("--name", help="The model's name, where a task has several.")]
OfRun = Annotated[str | None, typer.Option("--run", metavar="RUN", help="The model that this failed run left.")]


def make_model_app() -> typer.Typer:
    """Return the verbs about models."""
    app = typer.Typer(help="Look at stored models, and go back to one.", no_args_is_help=True, rich_markup_mode=None)
    return add_verbs(app, {"list": list_, "show": show, "rollback": rollback})


@shows("fedops-mqtt model list digits", "fedops-mqtt model list digits --store s3://bucket/models --json")
@takes_settings(ModelSettings)
def list_(settings: ModelSettings, task: Task, json: Json = False) -> None:
    """List a task's global models, the newest version last, and what failed runs left."""
    files = _files(settings, task)
    newest = {file.model_name: file.version for file in files}
    print_records([_row(file, newest[file.model_name]) for file in files], _COLUMNS, is_json=json)


@shows("fedops-mqtt model show digits", "fedops-mqtt model show digits --version 3")
@takes_settings(ModelSettings)
def show(
    settings: ModelSettings,
    task: Task,
    version: Annotated[int | None, typer.Option(min=1, help="Which version. [default: the newest]")] = None,
    run: OfRun = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """Show one model: where it comes from, and each of its arrays. Its checksum is verified."""
    from fedops_mqtt.line.reply_check import count_nonfinite

    store = _store(settings, task, name)
    found = _load(store, version or (None if run else store.next_version() - 1), run)
    facts = {"run_id": found.run_id, "round": found.round, "metrics": dict(found.metrics), "origin": found.origin}
    facts |= (
        found.made_with if json else {**found.made_with, "run_config": as_pairs(found.made_with.get("run_config", {}))}
    )
    about: dict[str, Any] = {"kind": "model", "model": found.model_name, "version": found.version, **facts}
    print_records_as_lines([{**about, "path": found.path}], is_json=json)
    arrays = (
        {
            "kind": "array",
            "name": name,
            "dtype": str(array.dtype),
            "shape": "x".join(map(str, array.shape)) or "scalar",
            "nonfinite": count_nonfinite(array),
        }
        for name, array in found.arrays.items()
    )
    print_records_as_lines(arrays, is_json=json)


@shows("fedops-mqtt model rollback digits --to 26", "fedops-mqtt model rollback digits --run RUN_ID")
@takes_settings(ModelSettings)
def rollback(
    settings: ModelSettings,
    task: Task,
    to: Annotated[int | None, typer.Option("--to", min=1, metavar="VERSION", help="Go back to this version.")] = None,
    run: OfRun = None,
    name: Name = None,
) -> None:
    """Make an earlier version, or a failed run's model, the newest: the next run begins from it.

    It is stored again under the next number; nothing is removed or changed. End a run in progress first: it has begun
    from another model, and stores its own after this one.
    """
    from fedops_mqtt.aggregation.model_arrays import nonfinite_in

    if (to is None) == (run is None):
        raise UsageError("say what to go back to: --to VERSION, or --run RUN")
    store = _store(settings, task, name)
    found = _load(store, to, run)
    what = f"V{found.version}" if found.version else f"the model of run {run}"
    if problem := nonfinite_in(found.arrays, found.arrays):
        raise FatalError(f"{what} is not finite: {problem}. Choose another: fedops-mqtt model list {task}", _FAILED)
    if to is not None and to == store.next_version() - 1:
        print(f"{what} is the newest already; nothing to do")
        return
    origin = f"V{to}" if to is not None else f"failed run {run}"
    with _explained():
        facts: dict[str, Any] = {"run_id": found.run_id, "round": found.round, "metrics": found.metrics}
        facts["made_with"] = found.made_with
        saved = store.save(found.arrays, origin=origin, **facts)
    print(f"V{saved.version} is {what} again; the next run begins from it: {saved.path}")


_FAILED = ExitCode.FAILED


def _files(settings: ModelSettings, task: str) -> "list[ModelFile]":
    from fedops_mqtt.store.versions import list_model_files

    with _explained():
        files = list_model_files(settings.store, task)
    if not files:
        raise FatalError(f"no models of task {task!r} in {settings.store}. --store names another store.", _FAILED)
    return files


def _row(file: "ModelFile", newest: int) -> dict[str, Any]:
    status = "failed run" if not file.version else "newest" if file.version == newest else ""
    facts = {name: file.facts.get(name) for name in ("round", "metrics", "origin")}
    return {
        "model": file.model_name,
        "version": file.version or None,
        "status": "corrupt" if file.problem else status,
        "run_id": file.run_id,
        "saved_at": file.facts.get("at"),
        **facts,
        "problem": file.problem,
        "path": file.path,
    }


def _store(settings: ModelSettings, task: str, name: str | None) -> "ModelStore":
    from fedops_mqtt.store.versions import ModelStore

    names = sorted({file.model_name for file in _files(settings, task)})
    if name is None and len(names) > 1:
        raise UsageError(f"task {task} has the models {', '.join(names)}: say which with --name")
    if name is not None and name not in names:
        raise FatalError(f"task {task} has no model {name!r}; it has {', '.join(names)}", _FAILED)
    return ModelStore(settings.store, task_id=task, model_name=name or names[0])


def _load(store: "ModelStore", version: int | None, run: str | None) -> "StoredModel":
    try:
        with _explained():
            return store.load_failed(run) if run is not None else store.load(version or 0)
    except FileNotFoundError:
        what = f"model of a failed run {run}" if run is not None else f"V{version}" if version else "version yet"
        there = ", ".join(f"V{each}" for each in store.versions()[-_MAX_SHOWN:]) or "none"
        raise FatalError(f"there is no {what}; versions there are: {there}", _FAILED) from None


@contextmanager
def _explained() -> Iterator[None]:
    """A store that cannot be read or written to, and a file that is corrupt, are a sentence each."""
    from fedops_mqtt.aggregation.errors import ServerError
    from fedops_mqtt.store.errors import StoreError

    try:
        yield
    except FileNotFoundError:
        raise
    except (ServerError, StoreError, OSError) as error:
        raise FatalError(str(error), _FAILED) from error


_MAX_SHOWN = 10
