"""The house of every server test, and an S3 for those of the store."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import fsspec
import httpx
import pytest
from server_parts import BUCKET, House

from fedops_mqtt.bus import Mosquitto


@pytest.fixture
async def house(broker: Mosquitto, task_id: str, tmp_path: Path) -> AsyncIterator[House]:
    with ExitStack() as stack:
        house = House(broker, task_id, tmp_path, stack)
        yield house
    await house.wait_empty()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    from moto.server import ThreadedMotoServer  # it takes a second, which every worker would spend

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    httpx.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    fsspec.filesystem("s3").clear_instance_cache()
    files = fsspec.filesystem("s3")
    files.mkdir(BUCKET)
    try:
        yield files
    finally:
        server.stop()
