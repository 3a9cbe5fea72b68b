"""Virtual environments for what delivered apps need and the device lacks, one for each set of requirements.

An environment is used only where its last file marks it as finished; whatever else lies there is removed.
"""

import asyncio
import hashlib
import logging
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement

from fedops_mqtt.apps import AppRefusedError
from fedops_mqtt.device.training_process import mark_of
from fedops_mqtt.protocol import ReasonCode
from fedops_mqtt.runtime.background import bare_error
from fedops_mqtt.runtime.files import REMOVED, mark_newest, remove_atomically
from fedops_mqtt.runtime.processes import MARK, LineSplitter, Tail, kill_all
from fedops_mqtt.runtime.settings import ClientSettings, environment_without_settings

logger = logging.getLogger(__name__)

_FINISHED = ".finished"
_TEMPORARY = ".tmp"
"""Where pip keeps what it downloads and builds: counted, and removed with the environment where that fails."""
_DEVICE_PACKAGES = "device-packages.pth"
"""Makes the device's own packages (flwr, this one) importable behind those of the environment (Python's `site`)."""
_MEASURE_S = 1.0
"""How often the size of an environment that is being made is looked at."""
_TAIL_LINES = 8
_TAIL_BYTES = 1500
_LINE_BYTES = 2000
_CHUNK_BYTES = 64 * 1024


class AppEnvironments:
    """The environments of one client; one is made at a time."""

    def __init__(self, *, settings: ClientSettings, state_folder: Path) -> None:
        self._settings = settings
        self._mark = mark_of(state_folder)
        self._folder = state_folder / "app-environments"
        self._clearing = threading.Lock()

    async def python_with(
        self, requires: Sequence[str], missing: Sequence[str], *, on_progress: Callable[[str], None]
    ) -> Path:
        """Return the Python that has these requirements (PEP 508); an environment is made where there is none yet.

        Raises:
            AppRefusedError: it cannot be made within the limits of time and size; nothing of it is left.
            OSError: the disk is full or cannot be written.
        """
        if direct := [each for each in requires if Requirement(each).url]:
            problem = f"{', '.join(direct)}: from an address, not from this device's package index"
            raise AppRefusedError(ReasonCode.DEPENDENCIES_MISSING, problem)
        environment = self._folder / await asyncio.to_thread(lock_digest, requires)
        python = environment / "bin" / "python"
        if _is_finished(environment):
            mark_newest(environment, self._folder.iterdir())
            return python
        await asyncio.to_thread(self.clear)
        logger.info("making an environment for an app", extra={"missing": list(missing), "folder": str(environment)})
        try:
            await self._make(environment, python, requires, on_progress)
        except TimeoutError as error:
            problem = f"installing {', '.join(missing)} took over {self._settings.app_install_limit_s:g} s"
            raise AppRefusedError(ReasonCode.DEPENDENCIES_MISSING, problem) from error
        finally:
            if not _is_finished(environment):
                await asyncio.to_thread(remove_atomically, environment)
        mark_newest(environment, self._folder.iterdir())
        return python

    async def _make(
        self, environment: Path, python: Path, requires: Sequence[str], on_progress: Callable[[str], None]
    ) -> None:
        async with asyncio.timeout(self._settings.app_install_limit_s):
            on_progress("making a virtual environment for the app")
            await self._run(environment, on_progress, sys.executable, "-m", "venv", str(environment))
            await asyncio.to_thread(_add_device_packages, environment)
            pip = (str(python), "-m", "pip", "install", "--no-input", "--no-cache-dir", "--progress-bar", "off")
            await self._run(environment, on_progress, *pip, *sorted(requires))
            await asyncio.to_thread(shutil.rmtree, environment / _TEMPORARY)
        finishing = asyncio.get_running_loop().run_in_executor(None, _finish, environment)
        try:
            await asyncio.shield(finishing)
        finally:  # a thread cannot be cancelled: nothing is removed while it is being finished
            await asyncio.wait({finishing})

    async def _run(self, environment: Path, on_progress: Callable[[str], None], *command: str) -> None:
        mark = self._mark + uuid.uuid4().hex
        temporary = environment / _TEMPORARY
        temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=self._environment_variables() | {MARK: mark, "TMPDIR": str(temporary)},
        )
        tail = Tail(max_lines=_TAIL_LINES, max_bytes=_TAIL_BYTES)
        assert process.stdout is not None
        try:
            with bare_error():
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(self._watch_size(environment), name="app-environment-size")
                    await _follow(process.stdout, tail, on_progress)
                    await process.wait()
                    watching.cancel()
        finally:
            await kill_all(process, mark)
        if process.returncode != 0:
            problem = (
                f"they could not be installed: {' '.join(command[1:4])} ended with {process.returncode}: {tail.text}"
            )
            raise AppRefusedError(ReasonCode.DEPENDENCIES_MISSING, problem)

    async def _watch_size(self, environment: Path) -> None:
        limit = self._settings.app_install_max_bytes
        while True:
            await asyncio.sleep(_MEASURE_S)
            if await asyncio.to_thread(_size_of, environment) > limit:
                problem = f"what the app needs takes more than {limit:,} bytes (app_install_max_bytes)"
                raise AppRefusedError(ReasonCode.DEPENDENCIES_MISSING, problem)

    def _environment_variables(self) -> dict[str, str]:
        """Return what `pip` gets: the device's own configuration of it, and none of our settings, some are secrets."""
        inherited = environment_without_settings().items()
        mine = {name: value for name, value in inherited if not name.startswith("PYTHON")}
        mine |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        if self._settings.app_index_url is not None:
            # By the environment: an address may hold a password, and others on the machine read arguments.
            mine |= {"PIP_INDEX_URL": self._settings.app_index_url, "PIP_EXTRA_INDEX_URL": "", "PIP_NO_INDEX": "0"}
        return mine

    def clear(self) -> None:
        """Remove what was not finished, by a power cut perhaps, and of the others those that were used longest ago."""
        with self._clearing:
            there = self._folder.iterdir() if self._folder.is_dir() else ()
            made = sorted(there, key=lambda path: path.stat().st_mtime, reverse=True)
            finished = [path for path in made if _is_finished(path)]
            for path in made:
                if path not in finished[: self._settings.app_keep_num]:
                    remove_atomically(path)


def lock_digest(requires: Sequence[str]) -> str:
    """Return the name of the environment for these requirements, this Python, and the packages that the device has."""
    has = sorted({f"{each.metadata['Name']}=={each.version}" for each in distributions()})
    text = "\n".join((sys.version, sys.prefix, *has, *sorted(requires)))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_finished(environment: Path) -> bool:
    is_whole = (environment / _FINISHED).exists() and (environment / "bin" / "python").exists()
    return is_whole and not environment.name.startswith(REMOVED)


async def _follow(output: asyncio.StreamReader, tail: Tail, on_progress: Callable[[str], None]) -> None:
    splitter = LineSplitter(_LINE_BYTES)
    while chunk := await output.read(_CHUNK_BYTES):
        tail.feed(chunk)
        for line in splitter.feed(chunk):
            text = line.decode(errors="replace").strip()
            if text.startswith(("Collecting ", "Downloading ", "Building ", "Installing ")):
                on_progress(f"installing what the app needs: {text}")


def _add_device_packages(environment: Path) -> None:
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    site_packages = next((environment / "lib").glob("python*/site-packages"))
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in folders)
    (site_packages / _DEVICE_PACKAGES).write_text(lines, encoding="utf-8")


def _finish(environment: Path) -> None:
    os.sync()  # thousands of files: a power cut must not leave some of them behind a mark that stands for all
    with (environment / _FINISHED).open("wb") as file:
        os.fsync(file.fileno())


def _size_of(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:  # pip has removed it meanwhile
                continue
    return total
