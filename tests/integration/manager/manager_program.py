"""A manager as a process: `manager_program.py SETTINGS_AS_JSON`; says `ready URL` when it leads."""

import asyncio
import logging
import sys

from fedops_mqtt.cli.roles import BUNDLE_SERVER
from fedops_mqtt.manager.app import run_manager
from fedops_mqtt.runtime.settings import ManagerSettings


def print_line(sentence: str) -> None:
    print(sentence, flush=True)


logging.basicConfig(level="INFO", stream=sys.stderr)
settings = ManagerSettings.model_validate_json(sys.argv[1])
life = run_manager(
    settings,
    bundle_server=BUNDLE_SERVER,
    print_line=print_line,
    on_ready=lambda url: print_line(f"ready {url}"),
)
sys.exit(asyncio.run(life))
