"""Settings as command-line options: every field is an option and an environment variable, written down once.

What is secret has no option, because other users of a machine can read a process's arguments.
"""

import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from click import UsageError
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from fedops_mqtt.cli.output import FatalError
from fedops_mqtt.runtime.machine import NoHomeError
from fedops_mqtt.runtime.settings import CONFIG_VARIABLE, origin_of, use_config_file
from fedops_mqtt.runtime.systemd import ExitCode

Settings = TypeVar("Settings", bound=BaseSettings)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]

_PLAIN_TYPES = (int, float, Path)
"""What click checks by itself; anything else is text that the settings check."""


def takes_settings(model: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options of a settings class; its first parameter receives the settings made from them.

    The verb's further parameters stay options of its own. Nested settings are options too.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        options = dict(_options_of(model))
        own = list(inspect.signature(verb).parameters.values())[1:]

        takes_file = CONFIG_OPTION not in map(option_name, model.model_fields)

        @wraps(verb)
        def with_options(**given: Any) -> None:
            file = given.pop(_CONFIG_PARAMETER, None)
            if file is not None:
                use_config_file(file)
            values = {name: given.pop(name) for name in options}
            verb(make_settings(model, {name: value for name, value in values.items() if value is not None}), **given)

        file_option = [_config_parameter()] if takes_file else []
        own_options = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        parameters = [*own_options, *file_option, *options.values()]
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_options

    return decorate


def make_settings(model: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Return the settings from options, the environment and the defaults.

    Raises:
        UsageError: an option has a value that its setting does not allow.
        FatalError: an environment variable or the settings file has.
    """
    top = {name: value for name, value in given.items() if name in model.model_fields}
    try:
        for name, nested in _nested(model):
            top[name] = nested(**{field: given[field] for field in nested.model_fields if field in given})
        return model(**top)
    except ValidationError as error:
        raise _explain(error, given) from error


def secrets_of(model: type[BaseSettings]) -> list[str]:
    """Return the environment variables that have no option."""
    return [_prefix_of(model) + name.upper() for name, field in model.model_fields.items() if _is_secret(field)]


def environment_of(model: type[BaseSettings]) -> list[str]:
    """Return every environment variable that a settings class reads."""
    own = [name for name in model.model_fields if name not in dict(_nested(model))]
    variables = [_prefix_of(model) + name.upper() for name in own]
    return variables + [each for _, nested in _nested(model) for each in environment_of(nested)]


CONFIG_OPTION = "--config"
_CONFIG_PARAMETER = "settings_file"

_SPELLED = {
    "tasks_file": "--tasks",
    "broker_port": "--port",
    "broker_config": "--config",
    "broker_data_dir": "--data-dir",
}
"""Options that are shorter than their settings, because the verb already names their subject."""


def option_name(field: str) -> str:
    """Return how a setting is spelled on the command line."""
    return _SPELLED.get(field, f"--{field.replace('_', '-')}")


def _options_of(model: type[BaseSettings]) -> Iterable[tuple[str, inspect.Parameter]]:
    nested = dict(_nested(model))
    for name, field in model.model_fields.items():
        if name in nested:
            yield from _options_of(nested[name])
        elif not _is_secret(field):
            yield name, _parameter(name, field, _prefix_of(model))


def _parameter(name: str, field: FieldInfo, prefix: str) -> inspect.Parameter:
    facts = f"[env: {prefix}{name.upper()}{_describe_default(field)}]"
    description = (field.description or "").strip()
    option = typer.Option(None, option_name(name), help=f"{description} {facts}", show_default=False)
    annotation = _plain_type(field.annotation) | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _config_parameter() -> inspect.Parameter:
    text = f"TOML file with settings; environment and options outweigh it [env: {CONFIG_VARIABLE}]"
    option = typer.Option(None, CONFIG_OPTION, help=text, show_default=False, exists=True, dir_okay=False)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(_CONFIG_PARAMETER, kind, default=option, annotation=Path | None)


def _describe_default(field: FieldInfo) -> str:
    try:
        default = field.get_default(call_default_factory=True, validated_data={})
    except NoHomeError as error:
        default = error.path
    return "" if default is None else f"; default: {f'{default:g}' if isinstance(default, float) else default}"


def _plain_type(annotation: Any) -> Any:
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((kind for kind in kinds if kind in _PLAIN_TYPES), str)


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _nested(model: type[BaseSettings]) -> list[tuple[str, type[BaseSettings]]]:
    fields = model.model_fields.items()
    return [
        (name, field.annotation)
        for name, field in fields
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseSettings)
    ]


def _prefix_of(model: type[BaseSettings]) -> str:
    return str(model.model_config.get("env_prefix", ""))


def _explain(error: ValidationError, given: Mapping[str, Any]) -> Exception:
    """Return the error for the first wrong value; the value itself stays out, it may be a password."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    problem = first["msg"].removeprefix("Value error, ")
    if not field:
        return FatalError(problem, ExitCode.CONFIG)
    if field in given:
        return UsageError(f"{option_name(field)}: {problem}")
    return FatalError(f"{origin_of(field)}: {problem}", ExitCode.CONFIG)


def add_verbs(app: typer.Typer, verbs: Mapping[str, Callable[..., None]]) -> typer.Typer:
    """Add verbs to a group, each with its examples below its help, and return it."""
    for name, verb in verbs.items():
        app.command(name, epilog=verb.__dict__.get("epilog"))(verb)
    return app


def shows(
    *examples: str, model: type[BaseSettings] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put examples below a verb's help, and the secrets of its settings class."""
    lines = ["\b", "Example:" if len(examples) == 1 else "Examples:", *(f"  {example}" for example in examples)]
    secrets = secrets_of(model) if model else []
    if secrets:
        lines += ["", "\b", "Only from the environment:", *(f"  {name}" for name in secrets)]

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        verb.__dict__["epilog"] = "\n".join(lines)
        return verb

    return decorate
