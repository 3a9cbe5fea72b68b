"""A published app whose FL server runs elsewhere: what its device needs, it gets from there."""

import asyncio
import hashlib
import os

from bundles import PROJECT, zipped
from manager_parts import PATIENCE_S, A, Api, Device, House, until

from fedops_mqtt.line.app_transfer import AppTransfer

SERVER_APP = b"""
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    grid.get_node_ids()
"""


def app_with_server(*, padding: int = 0) -> bytes:
    """A bundle whose ServerApp waits for a client; `padding` bytes of it do not compress."""
    files = {
        "pyproject.toml": PROJECT.encode(),
        "digits/__init__.py": b"",
        "digits/client_app.py": b"app = None",
        "digits/server_app.py": SERVER_APP,
        "digits/padding.bin": os.urandom(padding),
    }
    return zipped(files)


async def hands_out_its_app(house: House, api: Api, device: Device, bundle: bytes) -> None:
    """Publish the app, start a run, and fetch the app as the device would: from where its trigger says."""
    headers = {"content-type": "application/zip"}
    published = await api.http.post(f"/api/v1/tasks/{house.task_id}/apps", content=bundle, headers=headers)
    assert published.status_code == 201, published.text
    await api.start(house.task_id, min_clients=1)

    async def trigger() -> bool:
        return bool(device.starts)

    await until(trigger, "the trigger")
    start = device.starts[-1]
    assert start.app is not None
    assert start.app.digest == hashlib.sha256(bundle).hexdigest()
    into = house.folder / "fetched.part"
    transfer = AppTransfer(
        server_ip=start.server_ip, digest=start.app.digest, size=start.app.size, client_mac=A, token=start.token,
        ca_file=None, into=into, stall_s=PATIENCE_S, limit_s=PATIENCE_S,
    )  # fmt: skip
    await asyncio.to_thread(transfer.run)
    assert into.read_bytes() == bundle
