"""A real PostgreSQL of the test's own: started, stopped, frozen and gone on with, as a database server is.

As root it runs under Debian's user `postgres`, since PostgreSQL refuses to run as root.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from uuid import uuid4

import psutil
import psycopg
import pytest
from ports import free_port

_WAIT_S = 120
"""Means "hangs"."""


class Postgres:
    """One server on a free port of this machine; its data is kept while it is stopped."""

    def __init__(self) -> None:
        self._bin = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = free_port()

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
            for parent in self._folder.parents[:-1]:  # pytest's folders are closed to others
                if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                    parent.chmod(parent.stat().st_mode | 0o001)
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C")
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_running:
            self.go_on()
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def is_running(self) -> bool:
        """True while the server's process is there."""
        return (self._folder / "data" / "postmaster.pid").exists()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        options += " -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "start", "--wait", f"--log={self._folder / 'log'}", f"--options={options}")

    def stop(self) -> None:
        """Stop the server as a power cut would: whoever is connected is cut off."""
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def freeze(self) -> None:
        """Stop all of its processes where they stand; connections stay open and say nothing."""
        for process in self._processes():
            process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a frozen server go on."""
        for process in self._processes():
            process.send_signal(signal.SIGCONT)

    def new_database(self) -> str:
        """Make an empty database; return its SQLAlchemy URL."""
        name = f"test_{uuid4().hex}"
        address = f"postgres@127.0.0.1:{self.port}"
        with psycopg.connect(f"postgresql://{address}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
        return f"postgresql+psycopg://{address}/{name}"

    def _processes(self) -> Iterator[psutil.Process]:
        first = psutil.Process(int((self._folder / "data" / "postmaster.pid").read_text().split()[0]))
        yield first
        yield from first.children(recursive=True)

    def _run(self, program: str, *options: str) -> None:
        who = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*who, str(self._bin / program), f"--pgdata={self._folder / 'data'}", *options]
        # No pipes: the server would hold them open.
        with (self._folder / "said").open("ab") as said:
            done = subprocess.run(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=_WAIT_S, check=False
            )
        assert done.returncode == 0, (self._folder / "said").read_text()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for all tests of a process; a test that stops or freezes it has `own_postgres`."""
    with Postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that nobody else uses."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that a manager can have."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'manager.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """Keep a server frozen while the block runs."""
    server.freeze()
    try:
        yield
    finally:
        server.go_on()
