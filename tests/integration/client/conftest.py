"""FL servers as processes, and jobs for the training process."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from fedops_mqtt.client.pipe import Job
from fedops_mqtt.line.token import make_token

HERE = Path(__file__).parent
SECRET = b"0123456789abcdef"


class ServeFl(Protocol):
    """Starts an FL server and returns its address."""

    async def __call__(self, *arguments: str) -> str: ...


@pytest.fixture
async def serve_fl() -> AsyncIterator[ServeFl]:
    """FL servers that end with the test."""
    async with AsyncExitStack() as stack:

        async def serve(*arguments: str) -> str:
            return await stack.enter_async_context(_fl_server(*arguments))

        yield serve


@asynccontextmanager
async def _fl_server(*arguments: str) -> AsyncIterator[str]:
    server = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "fl_server.py"), *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(60):
            yield (await server.stdout.readline()).decode().strip()
    finally:
        if server.returncode is None:
            server.kill()
        await server.communicate()


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path, mac: str) -> MakeJob:
    """Jobs for a client of this test."""

    def make(**changes: object) -> Job:
        fields = {
            "app": "fl_apps:counting",
            "import_paths": (str(HERE),),
            "task_id": "t",
            "client_mac": mac,
            "client_name": "pi",
            "instance": "i",
            "run_id": "r1",
            "attempt": 1,
            "launch": 1,
            "server_ip": "127.0.0.1:1",
            "transport": "line",
            "token": make_token(SECRET, str(changes.get("run_id", "r1")), mac),
            "gl_model": 0,
            "num_clients": 1,
            "is_local": False,
            "state_folder": tmp_path,
            "ca_file": None,
            "join_limit_s": 20,
            "rejoin_limit_s": 5,
            "partition_id": 3,
            "num_partitions": 5,
            "run_config": {"batch_size": 32},
            "wandb": None,
        }
        return Job.model_validate(fields | changes)

    return make
