"""The client daemon with no command line around it: `fedops-mqtt client` becomes this once its options are read.

Its settings come from the environment alone: with what reads options in it (Typer, click, rich), an idle daemon would
hold 38 MB in place of 27.
"""

import asyncio
import os
import sys
from typing import NoReturn

from pydantic import SecretStr

from fedops_mqtt.runtime.logs import start_logging, warn_of_exposed_files
from fedops_mqtt.runtime.settings import ENV_PREFIX, ClientSettings, inherited_environment


def main() -> int:
    """Run the daemon that the environment describes and return its exit status."""
    settings = ClientSettings()
    start_logging(settings.log_level)
    warn_of_exposed_files(settings)
    from fedops_mqtt.client import run_client

    return asyncio.run(run_client(settings))


def become(settings: ClientSettings) -> NoReturn:
    """Replace this process by the daemon: same process id, none of what it had loaded.

    Secrets came by the environment and stay there; nothing but the module's name is in the arguments.
    """
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    environment = inherited_environment() | {
        f"{ENV_PREFIX}{name.upper()}": str(value)
        for name, value in values.items()
        if value is not None and not isinstance(value, SecretStr)
    }
    # -P: a file in the present folder must not take the place of one of Python's own modules.
    os.execve(sys.executable, [sys.executable, "-P", "-m", __name__], environment)  # noqa: S606 (arguments, no shell)


if __name__ == "__main__":
    sys.exit(main())
