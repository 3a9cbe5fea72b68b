"""Whether an app can be imported, asked of a process of its own: at the start, and not by the first training."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from fedops_mqtt.device.training_process import mark_of, training_environment
from fedops_mqtt.runtime.orphans import kill_group

MODULE = "fedops_mqtt.training.app_check"
TIMEOUT_S = 120.0
"""torch takes half a minute on a small device; an app that takes longer is left to its training."""
_MAX_ANSWER = 2000


async def check_app(app: str, import_paths: Sequence[str], *, state_folder: Path) -> str | None:
    """Return what is wrong with an app (`MODULE:ATTRIBUTE`); None when it is there, or takes too long to say."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULE, app, *import_paths),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=training_environment(state_folder, mark_of(state_folder) + "check"),
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError:
        return None
    finally:
        kill_group(process.pid)
        await process.wait()
    if not process.returncode:
        return None
    problem = said.decode(errors="replace").strip()[-_MAX_ANSWER:]
    return problem or f"cannot load app {app!r}: importing it ended its process with status {process.returncode}"
