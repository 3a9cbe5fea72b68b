"""A web page elsewhere, in a real browser: nothing that it can send starts a training on the visitor's machine."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from browsing import visiting

from fedops_mqtt.client.client_managers import ClientManagers
from fedops_mqtt.client.client_utils import FLClientStatus
from fedops_mqtt.client.http_shim import make_shim, serving
from fedops_mqtt.core.client_state import LocalStart, StartDecision
from fedops_mqtt.protocol import Answer
from fedops_mqtt.runtime.settings import ClientSettings

MAC = "02:00:00:00:00:01"

_ATTACK = """
<!doctype html><title>evil</title><body>
<script>
  const hosts = ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "127.1", "2130706433"];
  const start = '{"server_ip": "127.0.0.1:9000", "client_mac": "%(mac)s"}';
  const sent = [];
  for (const host of hosts) {
    const shim = `http://${host}:%(port)d`;
    sent.push(new Promise((done) => {
      const image = new Image();
      image.referrerPolicy = "no-referrer";
      image.onload = image.onerror = done;
      image.src = `${shim}/start/127.0.0.1:9000`;
      document.body.append(image);
    }));
    for (const type of ["text/plain", "application/x-www-form-urlencoded"]) {
      const options = {method: "POST", mode: "no-cors", headers: {"Content-Type": type}, body: start};
      sent.push(fetch(`${shim}/start`, {...options, referrerPolicy: "no-referrer"}).catch(() => {}));
    }
    navigator.sendBeacon(`${shim}/start`, start);
  }
  Promise.all(sent).then(() => { document.title = "sent"; });
</script>
"""


class _Page(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _page_elsewhere(content: str) -> Iterator[str]:
    handler = type("Handler", (_Page,), {"content": content.encode()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://evil.example.org:{server.server_address[1]}/"
        server.shutdown()


@pytest.mark.long
@pytest.mark.parametrize("starts_by_get", [False, True])
async def test_a_page_of_another_origin_starts_no_training(starts_by_get: bool) -> None:
    starts: list[LocalStart] = []

    async def start(asked: LocalStart) -> StartDecision:
        starts.append(asked)
        return StartDecision(answer=Answer.ACCEPTED)

    managers = ClientManagers.from_settings(ClientSettings(), "t")
    shim = make_shim(
        view=lambda: FLClientStatus(client_mac=MAC), start=start, managers=managers, starts_by_get=starts_by_get
    )
    async with serving(shim, "127.0.0.1:0") as address:
        with _page_elsewhere(_ATTACK % {"mac": MAC, "port": int(address.rpartition(":")[2])}) as url:
            async with visiting(flags=("--host-resolver-rules=MAP evil.example.org 127.0.0.1",)) as visitor:
                await visitor.page.goto(url)
                await visitor.page.wait_for_function("() => document.title === 'sent'")
    assert starts == []
