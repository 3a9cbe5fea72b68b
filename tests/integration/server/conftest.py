"""The house of every server test, and an S3 for those of the store."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import fsspec
import httpx
import pytest
from server_parts import BUCKET, WAIT_S, House
from werkzeug.serving import make_server

from fedops_mqtt.bus import Mosquitto


@pytest.fixture
async def house(broker: Mosquitto, task_id: str, tmp_path: Path) -> AsyncIterator[House]:
    with ExitStack() as stack:
        house = House(broker, task_id, tmp_path, stack)
        yield house
    await house.wait_empty()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    from moto.server import DomainDispatcherApplication, create_backend_app  # a second, which every worker would spend

    # One request at a time: moto looks whether a key is there and writes it in two steps, which S3 does in one.
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    host, port = server.server_address[:2]
    httpx.post(f"http://{host}:{port}/moto-api/reset", timeout=WAIT_S).raise_for_status()
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
        server.shutdown()
        thread.join()
        server.server_close()
