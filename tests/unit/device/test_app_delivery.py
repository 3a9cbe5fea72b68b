"""An app on its way to a device, from a server that sends something else each time it is asked."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from http_stand_in import Handler, serving

from fedops_mqtt.apps import AppRefusedError
from fedops_mqtt.device import app_delivery
from fedops_mqtt.device.app_delivery import AppDelivery
from fedops_mqtt.device.app_policy import app_folder
from fedops_mqtt.protocol import AppReference, ReasonCode, RunStart
from fedops_mqtt.runtime.settings import ClientSettings

WANTED = bytes(range(256)) * 40
WRONG = bytes(len(WANTED))
DIGEST = hashlib.sha256(WANTED).hexdigest()
FEW_BYTES = 10
MAX_WHOLE = 6
"""After so many wrong bundles the server sends the right one: a client that never gives up fails the test by that."""


class Breaking(Handler):
    """Sends a few bytes and breaks the connection; of whom asks for the rest it begins again, with a wrong bundle."""

    protocol_version = "HTTP/1.1"
    num_whole = 0

    def do_GET(self) -> None:
        content = WRONG if self.num_whole < MAX_WHOLE else WANTED
        is_begun = self.headers["range"] is not None
        type(self).num_whole += is_begun  # before the answer: the client goes on as soon as it has that
        self.send_response(200)
        self.send_header("content-length", str(len(WRONG)))
        self.end_headers()
        self.wfile.write(content if is_begun else content[:FEW_BYTES])
        self.close_connection = True


async def fetch(folder: Path, server_ip: str, left: bytes) -> AppRefusedError:
    """Return how the fetching ended, where an earlier transfer has left something."""
    settings = ClientSettings.model_validate({"app": "delivered"})
    delivery = AppDelivery(settings=settings, client_mac="02:00:00:00:00:01", folder=folder, on_report=lambda _: None)
    partial = app_folder(folder) / f"{DIGEST}.part"
    if left:
        partial.parent.mkdir(parents=True)
        partial.write_bytes(left)
    app = AppReference(digest=DIGEST, version="1.0.0", size=len(WANTED))
    start = RunStart(run_id="r1", attempt=1, launch=1, server_ip=server_ip, token="t" * 64, app=app)
    with pytest.raises(AppRefusedError) as refused:
        await delivery.prepare(start)
    assert not partial.exists()
    return refused.value


@pytest.mark.parametrize(("left", "times"), [(b"", 1), (b"x" * FEW_BYTES, 2)], ids=["nothing", "a part"])
async def test_a_wrong_bundle_is_fetched_again_only_where_an_earlier_transfer_left_a_part(
    tmp_path: Path, left: bytes, times: int
) -> None:
    class Server(Breaking):
        num_whole = 0

    with serving(Server) as address:
        refused = await fetch(tmp_path, address, left)
    assert refused.code is ReasonCode.APP_DIGEST_MISMATCH
    assert Server.num_whole == times


async def test_the_second_transfer_has_what_the_first_left_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server(Breaking):
        num_whole = 0

    clock = SimpleNamespace(monotonic=lambda: 1e6 * Server.num_whole)
    monkeypatch.setattr(app_delivery, "time", clock)
    with serving(Server) as address:
        refused = await fetch(tmp_path, address, b"x" * FEW_BYTES)
    assert refused.code is ReasonCode.APP_NOT_DELIVERED
    assert Server.num_whole == 1
