"""FedOps' HTTP face of a client: `GET /online` and `POST /start`, thin over the daemon.

A start that comes here is the same start as one that comes on the bus: both are the daemon's `start`.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated

import uvicorn
from fastapi import FastAPI, HTTPException, Request, status
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedops_mqtt.client.client_utils import FLClientStatus
from fedops_mqtt.core.client_events import LocalStart, Verdict
from fedops_mqtt.protocol import Answer, AnyMacAddress

logger = logging.getLogger(__name__)

_SHUTDOWN_S = 1
"""An open request is given this long when the daemon ends."""
_BACKLOG = 16
_MAX_PORT = 65535
_MAX_BODY_BYTES = 64 * 1024
"""A start has a hundred; a small device must not be filled up by a large one."""

View = dict[str, str | int | bool | None]


class ShimAddressError(OSError):
    """The shim cannot listen where it was told to."""

    def __init__(self, address: str, problem: str) -> None:
        self.address = address
        self.problem = problem
        super().__init__(f"cannot listen on {address}: {problem}; choose another address with --http, or none")


def _check_port(address: str) -> str:
    if not 0 < int(address.rpartition(":")[2]) <= _MAX_PORT:
        raise ValueError(f"port must be 1 to {_MAX_PORT}")
    return address


class StartRequest(BaseModel):
    """What `POST /start` takes; further fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    server_ip: Annotated[str, Field(max_length=300, pattern=r"^\S+:\d{1,5}$"), AfterValidator(_check_port)]
    client_mac: AnyMacAddress


def make_shim(*, view: Callable[[], FLClientStatus], start: Callable[[LocalStart], Awaitable[Verdict]]) -> FastAPI:
    """Return the HTTP app over a daemon."""
    app = FastAPI(title="fedops-mqtt client", docs_url=None, redoc_url=None)

    @app.get("/online")
    async def online() -> View:
        """Tell this client's condition under FedOps' names, old and new."""
        return view().with_first_names()

    @app.post("/start", responses={status.HTTP_409_CONFLICT: {"description": "not this client, or busy"}})
    async def start_training(request: StartRequest) -> View:
        """Start training at a server, in the background; the same request again starts nothing more."""
        verdict = await start(LocalStart(server_ip=request.server_ip, client_mac=request.client_mac))
        if verdict.answer is Answer.REJECTED:
            raise HTTPException(status.HTTP_409_CONFLICT, verdict.reason)
        return view().with_first_names()

    @app.exception_handler(status.HTTP_400_BAD_REQUEST)
    async def malformed(request: Request, error: Exception) -> JSONResponse:
        """Bytes that are no text are as malformed as text that is no JSON."""
        return JSONResponse({"detail": "the body is no JSON"}, status.HTTP_422_UNPROCESSABLE_CONTENT)

    return app


class _BodyLimit:
    """Cuts off a request whose body is too large; the app sees a client that has gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            return message if num_bytes <= _MAX_BODY_BYTES else {"type": "http.disconnect"}

        await self._app(scope, receive_bounded, send)


@contextlib.asynccontextmanager
async def serving(app: FastAPI, address: str) -> AsyncIterator[str]:
    """Serve `app` in this event loop while the block runs; yields `host:port` as it listens.

    Raises:
        ShimAddressError: the address is taken, or none of this machine's.
    """
    listening = _listen(address)
    server = _Server(
        uvicorn.Config(
            _BodyLimit(app),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            loop="none",
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
    )
    host, port = listening.getsockname()[:2]
    with listening:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listening]), name="http-shim")
            logger.info("HTTP shim listens", extra={"address": f"{host}:{port}"})
            try:
                yield f"{host}:{port}"
            finally:
                server.should_exit = True


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the daemon."""
        yield


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise ShimAddressError(address, getattr(error, "strerror", None) or str(error)) from error
