"""An app is on the device whole or not at all, whenever the power goes."""

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from bundles import CODE, PROJECT, zipped

from fedops_mqtt.apps import AppLibrary, KeepLimits, read_bundle
from fedops_mqtt.apps.bundle import MANIFEST

FILES = {"pyproject.toml": PROJECT.encode(), **{f"digits/{name}.py": CODE.encode() for name in ("a", "b", "sub/c")}}
DATA = zipped(FILES)
BUNDLE = read_bundle(DATA)


def contents(folder: Path) -> dict[str, bytes]:
    """What the app consists of, without the manifest of its installation."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in files.items() if path != MANIFEST}


def another(number: int) -> bytes:
    return zipped({**FILES, "number.py": str(number).encode()})


def test_an_app_is_installed_once_and_read_only(tmp_path: Path) -> None:
    library = AppLibrary(tmp_path / "apps")
    assert library.find(BUNDLE.digest) is None
    folder = library.install(DATA, BUNDLE)
    assert contents(folder) == FILES
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert modes == {0o555, 0o444}
    assert library.install(DATA, BUNDLE) == folder == AppLibrary(tmp_path / "apps").find(BUNDLE.digest)
    assert library.installed() == [BUNDLE.digest]


@pytest.mark.parametrize("damaged", ["digits/a.py", MANIFEST])
@pytest.mark.parametrize("content", [b"", b"other", None])
def test_an_app_that_has_changed_on_the_disk_is_not_found_and_is_installed_anew(
    tmp_path: Path, damaged: str, content: bytes | None
) -> None:
    library = AppLibrary(tmp_path / "apps")
    file = library.install(DATA, BUNDLE) / damaged
    file.parent.chmod(0o700)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert library.find(BUNDLE.digest) is None
    assert contents(library.install(DATA, BUNDLE)) == FILES
    assert library.find(BUNDLE.digest) is not None
    assert [path.name for path in library.folder.iterdir()] == [BUNDLE.digest]


@pytest.mark.parametrize("digest", ["", "..", "../" + "a" * 61, "A" * 64, "a" * 63])
def test_what_is_no_digest_names_no_folder(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        AppLibrary(tmp_path).find(digest)


def test_approval_is_kept_for_a_digest(tmp_path: Path) -> None:
    library = AppLibrary(tmp_path / "apps")
    assert not library.is_approved(BUNDLE.digest)
    library.approve(BUNDLE.digest)
    assert AppLibrary(tmp_path / "apps").is_approved(BUNDLE.digest)
    assert not library.is_approved("b" * 64)


def test_the_last_used_apps_stay_and_those_in_use(tmp_path: Path) -> None:
    library = AppLibrary(tmp_path / "apps")
    digests = []
    for number in range(4):
        data = another(number)
        bundle = read_bundle(data)
        library.install(data, bundle)
        os.utime(library.folder / bundle.digest, (number + 1, time.time() - 100 + number))
        digests.append(bundle.digest)
    assert library.installed() == digests[::-1]
    assert library.prune(KeepLimits(num_apps=2), keep=frozenset(digests[:1])) == [digests[1]]
    assert set(library.installed()) == {digests[0], *digests[2:]}
    library.note_use(digests[0])
    assert library.installed()[0] == digests[0]
    assert set(library.prune(KeepLimits(size_bytes=1))) == {digests[0], *digests[2:]}
    assert [path.name for path in library.folder.iterdir()] == []


STEPS = ("open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "os.utime")


KILLED = """
import os, signal, sys
from pathlib import Path
from fedops_mqtt.apps import AppLibrary, KeepLimits, read_bundle

root, steps = Path(sys.argv[1]), sys.argv[2:]
data = (root / "bundle").read_bytes()
bundle = read_bundle(data)

def use_until_killed(folder, left):
    def count(event, args):
        nonlocal left
        if event in steps and str(folder) in str(args[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    library = AppLibrary(folder)
    library.install(data, bundle)
    library.note_use(bundle.digest)
    library.prune(KeepLimits(num_apps=0))
    os._exit(0)

for step in range(1, 500):
    if (child := os.fork()) == 0:
        use_until_killed(root / f"apps-{step}", step)
    if os.waitpid(child, 0)[1] == 0:
        print(step)
        break
"""
"""Installs, uses and removes an app in children, each killed one access to the folder later than the one before."""


def test_a_power_cut_at_any_step_leaves_the_whole_app_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(DATA)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, *STEPS], capture_output=True, text=True, check=True, timeout=300
    )
    last = int(done.stdout)
    seen: set[bool] = set()
    for step in range(1, last + 1):
        folder = tmp_path / f"apps-{step}"
        library = AppLibrary(folder)
        found = library.find(BUNDLE.digest)
        assert found is None or contents(found) == FILES, step
        seen.add(found is not None)
        if step < last:
            assert contents(library.install(DATA, BUNDLE)) == FILES, step
            assert [path.name for path in folder.iterdir()] == [BUNDLE.digest], step
    assert seen == {True, False}
    assert last > 20


def test_two_installs_of_one_app_leave_each_other_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that was stopped leaves a thread that writes its app, while the next one begins with the same app."""
    library, whole = AppLibrary(tmp_path / "apps"), os.fsync
    is_writing, may_write = threading.Event(), threading.Event()

    def slow(handle: int) -> None:  # the disk, at first
        if not is_writing.is_set():
            is_writing.set()
            may_write.wait(300)
        whole(handle)

    monkeypatch.setattr(os, "fsync", slow)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(library.install, DATA, BUNDLE)
        assert is_writing.wait(300)
        second = threads.submit(library.install, DATA, BUNDLE)
        pruned = threads.submit(library.prune, KeepLimits())
        wait([second, pruned], timeout=0.5)  # time enough to do harm
        may_write.set()
        assert first.result() == second.result()
        assert pruned.result() == []
    assert contents(first.result()) == FILES
    assert [path.name for path in library.folder.iterdir()] == [BUNDLE.digest]


def test_the_last_used_app_stays_though_the_clock_was_set_back(tmp_path: Path) -> None:
    library = AppLibrary(tmp_path / "apps")
    digests = []
    for number in range(3):
        data = another(number)
        digests.append((bundle := read_bundle(data)).digest)
        library.install(data, bundle)
        in_a_year = time.time() + 365 * 86400
        os.utime(library.folder / digests[-1], (in_a_year + number, in_a_year + number))
    library.note_use(digests[0])
    assert library.installed() == [digests[0], digests[2], digests[1]]


@pytest.fixture
def reachable(tmp_path: Path) -> Iterator[None]:
    """Let other users enter the test's folder, and those that it is in."""
    modes = {folder: folder.stat().st_mode for folder in (tmp_path, *tmp_path.parents)}
    closed = {folder: mode for folder, mode in modes.items() if mode & 0o001 == 0}
    for folder, mode in closed.items():
        folder.chmod(mode | 0o001)
    yield
    for folder, mode in closed.items():
        folder.chmod(mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what belongs to somebody else")
@pytest.mark.usefixtures("reachable")
def test_what_root_approves_belongs_to_the_owner_of_the_client(tmp_path: Path) -> None:
    client = tmp_path / "client"
    client.mkdir()
    os.chown(client, 12345, 12346)
    umask = os.umask(0o077)
    try:
        AppLibrary(client / "apps").approve(BUNDLE.digest)
    finally:
        os.umask(umask)
    made = list(client.rglob("*"))
    assert len(made) == 3
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(12345, 12346)}
    assert (os.geteuid(), os.getegid()) == (0, os.getgid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights that a link could lead to")
@pytest.mark.usefixtures("reachable")
def test_root_follows_no_link_of_the_client_to_what_the_client_may_not_write(tmp_path: Path) -> None:
    client, secret = tmp_path / "client", tmp_path / "secret"
    secret.write_text("root's own")
    secret.chmod(0o600)
    (client / "apps" / "approved").mkdir(parents=True)
    (client / "apps" / "approved" / BUNDLE.digest).symlink_to(secret)
    for path in (client, *client.rglob("*")):
        os.chown(path, 12345, 12346, follow_symlinks=False)
    with pytest.raises(PermissionError):
        AppLibrary(client / "apps").approve(BUNDLE.digest)
    assert (secret.stat().st_uid, secret.stat().st_mode & 0o777, secret.read_text()) == (0, 0o600, "root's own")
    AppLibrary(client / "apps").withdraw(BUNDLE.digest)
    assert secret.exists()
