"""What stands below a verb's help: an example to copy, and what can only come from the environment."""

from collections.abc import Callable

from pydantic_settings import BaseSettings

from fedops_mqtt.cli.options import secrets_of


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
