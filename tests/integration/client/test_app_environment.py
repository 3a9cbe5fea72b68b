"""What an app needs and the device lacks becomes an environment of its own, within limits, or nothing is left of it."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest

from fedops_mqtt.apps import AppRefusedError
from fedops_mqtt.device.app_environment import AppEnvironments
from fedops_mqtt.runtime.settings import ClientSettings

pytestmark = pytest.mark.long  # each makes virtual environments, and pip runs in them

NAME = "delivered-test-package"
MODULE = "delivered_test_package"
SOURCE = "delivered_test_source"
LARGE_BYTES = 500_000_000
"""More than an environment takes; a file of it has a hole."""


@pytest.fixture
def index(tmp_path: Path) -> str:
    """A package index (PEP 503) in a folder, with one package of one module."""
    wheel = tmp_path / "index" / NAME / f"{MODULE}-2.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    about = f"{MODULE}-2.0.dist-info"
    files = {
        f"{MODULE}.py": "answer = 42\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 2.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{about}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"]))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    page = f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>'
    (wheel.parent / "index.html").write_text(page, encoding="utf-8")
    return (tmp_path / "index").as_uri()


@pytest.fixture
def built(tmp_path: Path, index: str) -> Path:
    """Where a package that has to be built notes the folder that it fills; its build then goes on until it is ended."""
    note = tmp_path / "note"
    backend = f"""
import json, os, pathlib, tempfile, time
def build_wheel(*_, **__):
    folder = tempfile.mkdtemp()
    with open(os.path.join(folder, "large"), "wb") as file:
        file.truncate({LARGE_BYTES})
    mode = os.stat(tempfile.gettempdir()).st_mode & 0o777
    pathlib.Path({str(note)!r}).write_text(json.dumps([folder, mode]))
    time.sleep(600)
"""
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    about = f"Metadata-Version: 2.1\nName: {SOURCE}\nVersion: 2.0\n"
    archive = tmp_path / "index" / SOURCE.replace("_", "-") / f"{SOURCE}-2.0.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        for name, text in (("backend.py", backend), ("pyproject.toml", project), ("PKG-INFO", about)):
            info = tarfile.TarInfo(f"{SOURCE}-2.0/{name}")
            info.size = len(text.encode())
            file.addfile(info, BytesIO(text.encode()))
    (archive.parent / "index.html").write_text(f'<a href="{archive.name}">{archive.name}</a>', encoding="utf-8")
    return note


def environments(tmp_path: Path, index: str, **settings: object) -> AppEnvironments:
    said = {"app": "delivered", "app_install": "venv", "app_index_url": index}
    return AppEnvironments(settings=ClientSettings.model_validate(said | settings), state_folder=tmp_path / "state")


async def make(made: AppEnvironments, requires: Sequence[str], told: list[str] | None = None) -> Path:
    return await made.python_with(requires, requires, on_progress=(told if told is not None else []).append)


def run(python: Path, code: str) -> str:
    done = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.strip()


async def test_an_environment_has_what_is_asked_for_and_the_devices_own_packages(tmp_path: Path, index: str) -> None:
    told: list[str] = []
    python = await make(environments(tmp_path, index), [f"{NAME}>=1"], told)
    code = f"import {MODULE}, flwr, fedops_mqtt.client.client_fl; print({MODULE}.answer)"
    assert await asyncio.to_thread(run, python, code) == "42"
    assert any(NAME in each for each in told)
    assert not (python.parents[1] / ".tmp").exists()
    again: list[str] = []
    assert await make(environments(tmp_path, "http://127.0.0.1:1"), [f"{NAME}>=1"], again) == python
    assert again == []


@pytest.mark.parametrize(
    ("requires", "settings", "fact"),
    [
        ([f"{NAME}>=3"], {}, NAME),
        (["no-such-package-here"], {}, "no-such-package-here"),
        ([f"{NAME} @ https://example.org/x.whl"], {}, "not from this device's package index"),
        ([NAME], {"app_install_limit_s": 0.01}, "0.01 s"),
        ([NAME], {"app_install_max_bytes": 1}, "more than 1 bytes"),
    ],
    ids=["too old", "unknown", "address", "time", "size"],
)
async def test_an_environment_that_cannot_be_made_is_reported_and_nothing_of_it_stays(
    tmp_path: Path, index: str, requires: list[str], settings: dict[str, object], fact: str
) -> None:
    with pytest.raises(AppRefusedError, match=fact) as refused:
        await make(environments(tmp_path, index, **settings), requires)
    assert refused.value.code.value == "dependencies-missing"
    assert not list((tmp_path / "state").rglob("bin"))


async def test_what_is_built_counts_and_nothing_of_it_is_left(tmp_path: Path, index: str, built: Path) -> None:
    limits = {"app_install_max_bytes": LARGE_BYTES, "app_install_limit_s": 200}
    with pytest.raises(AppRefusedError, match=f"more than {LARGE_BYTES:,} bytes"):
        await make(environments(tmp_path, index, **limits), [SOURCE])
    folder, mode = json.loads(await asyncio.to_thread(built.read_text))
    assert (await asyncio.to_thread(os.path.exists, folder), mode) == (False, 0o700)


async def test_one_that_was_not_finished_is_made_anew(tmp_path: Path, index: str) -> None:
    made = environments(tmp_path, index)
    python = await make(made, [NAME])
    (python.parents[1] / ".finished").unlink()
    (python.parents[1] / "half").touch()
    assert await make(made, [NAME]) == python
    assert not (python.parents[1] / "half").exists()


async def test_what_a_power_cut_left_goes_with_the_next_app_and_so_do_the_oldest(tmp_path: Path, index: str) -> None:
    folder = tmp_path / "state" / "app-environments"
    for number in range(4):
        (folder / str(number) / "bin").mkdir(parents=True)
        (folder / str(number) / "bin" / "python").touch()
        if number:
            (folder / str(number) / ".finished").touch()
        os.utime(folder / str(number), (number, number))
    environments(tmp_path, index, app_keep_num=2).clear()
    assert {path.name for path in folder.iterdir()} == {"2", "3"}


async def test_a_cancelled_one_leaves_nothing(tmp_path: Path, index: str) -> None:
    began = asyncio.Event()
    made = environments(tmp_path, index)
    making = asyncio.create_task(made.python_with([NAME], [NAME], on_progress=lambda text: began.set()))
    await began.wait()
    making.cancel()
    await asyncio.wait([making])
    assert making.cancelled()
    assert not list((tmp_path / "state").rglob("bin"))


async def test_a_stop_while_it_is_finished_leaves_a_whole_environment_or_none(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_syncing, may_sync = threading.Event(), threading.Event()

    def slow() -> None:  # the disk
        is_syncing.set()
        may_sync.wait(300)

    monkeypatch.setattr(os, "sync", slow)
    made = environments(tmp_path, index)
    async with asyncio.TaskGroup() as group:
        making = group.create_task(make(made, [NAME]))
        await asyncio.to_thread(is_syncing.wait, 300)
        making.cancel()
        await asyncio.wait({making}, timeout=0.5)  # time enough to do harm
        may_sync.set()
    python = await make(made, [NAME])
    assert await asyncio.to_thread(run, python, f"import {MODULE}; print({MODULE}.answer)") == "42"


async def test_a_mark_without_its_environment_is_none(tmp_path: Path, index: str) -> None:
    """As a power cut left it in the middle of a removal."""
    made = environments(tmp_path, index)
    python = await make(made, [NAME])
    environment = python.parents[1]
    for path in environment.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    assert [path.name for path in environment.iterdir() if path.name.startswith(".")] == [".finished"]
    assert await make(made, [NAME]) == python
    assert await asyncio.to_thread(run, python, f"import {MODULE}; print({MODULE}.answer)") == "42"


async def test_an_environment_is_made_anew_for_other_packages_of_the_device(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = environments(tmp_path, index)
    python = await make(made, [NAME])
    about = tmp_path / "site-packages" / "newer-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: newer\nVersion: 1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(about.parent))
    assert await make(made, [NAME]) != python
