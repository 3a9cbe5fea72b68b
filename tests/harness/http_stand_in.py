"""An HTTP server in a thread, for what answers otherwise than our own programs would."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Logs nothing."""

    def give(self, status: int, body: bytes, **headers: str) -> None:
        """Answer with this body; `headers` are further ones."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def endless(status: int, piece: bytes, pause_s: float) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return what answers with this piece again and again, with pauses between, until the client has left."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.end_headers()
        try:
            while True:
                request.wfile.write(piece)
                time.sleep(pause_s)
        except OSError:  # the client has left
            request.close_connection = True

    return answer


@contextmanager
def serving(handler: type[Handler]) -> Iterator[str]:
    """Serve while the block runs; yields `host:port`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
