"""The only module that touches flwr's private names; when flwr moves, this file and its test are where it shows.

Used here, the same in flwr 1.41 and 1.42:
- `flwr.supercore.task_identity.TaskIdentity.{run_id,node_id,task_id}`: process-wide; `Message(...)` reads it for new
  instructions, and strategies fail without it. (`flwr.server.compat.start_grid` sets it by itself.)
- `flwr.supercore.run.Run.create_empty` and `RunNotRunningException`: what `Grid.run` returns, and the one exception
  that `start_grid`'s background thread takes as the end (a `BaseException`).
- `Metadata.__dict__["_message_id"]`, `["_run_id"]` and `["_src_node_id"]`: read-only properties that SuperLink's own
  Grid sets this way.
- `Message(content=… | error=…, metadata=…)`: accepted at run time, not among the public overloads.
- `flwr.compat.client.app.start_client_internal`: `flwr.client.start_client` takes no ClientApp, this does.
- `flwr.common.constant`: `ErrorCode`, `SUPERLINK_NODE_ID`, `SType`; `flwr.common.Code`, a classic result's status.
- `flwr.compat.common.recorddict_compat`: how classic strategies and clients put their messages into records.
- `flwr.server.superlink.fleet.grpc_bidi.flower_service_servicer.FlowerServiceServicer`: the gRPC half of `start_server`
  without its rounds. `grpc_bridge.GrpcBridgeClosed`: its client has disconnected.
- `flwr.client.message_handler.message_handler.handle_legacy_message_from_msgtype`: what it and `ClientApp.__call__`
  raise themselves means that a message has no function in the app.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.client.message_handler.message_handler import handle_legacy_message_from_msgtype as handle_classic_message
from flwr.clientapp import ClientApp
from flwr.common import Code
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
from flwr.compat.common import recorddict_compat as legacy_records
from flwr.server.superlink.fleet.grpc_bidi.grpc_bridge import GrpcBridgeClosed as ClassicStreamClosed
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CLASSIC_OK",
    "CLIENT_APP_RAISED",
    "NODE_UNAVAILABLE",
    "NUMPY_STYPE",
    "SERVER_NODE_ID",
    "ClassicStreamClosed",
    "Metadata",
    "Run",
    "RunNotRunningException",
    "is_unhandled",
    "legacy_records",
    "make_message",
    "make_run",
    "run_classic_client",
    "serve_classic",
    "set_identity",
    "stamp",
]

SERVER_NODE_ID: int = SUPERLINK_NODE_ID
CLIENT_APP_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
NODE_UNAVAILABLE: int = ErrorCode.NODE_UNAVAILABLE
NUMPY_STYPE: str = SType.NUMPY
CLASSIC_OK = Code.OK

_CLASSIC_KEEPALIVE_MS = 10_000
"""A host that vanished is noticed within half a minute; Flower's default is three and a half."""

_CLASSIC_CONNECTIONS = 16
"""One client is served; the others are unknown, or come again before their old connection is closed."""
_CLASSIC_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", _CLASSIC_KEEPALIVE_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.max_allowed_incoming_connections", _CLASSIC_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 20_000),
)
"""Who connects and asks nothing is disconnected, and cannot use up the process's descriptors."""

_DISPATCHERS = (ClientApp.__call__.__code__, handle_classic_message.__code__)
"""What looks for a message's function, and raises itself where there is none."""

_TASK_ID = 1
"""What `start_grid` uses for callers outside SuperLink."""


def set_identity(*, run_id: int, node_id: int) -> None:
    """Set the node id of this process, so that `Message(...)` can be built in it; it holds for the whole process."""
    TaskIdentity.task_id = _TASK_ID
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def make_run(run_id: int) -> Run:
    """Return the `Run` that a Grid has to show; only its id means anything here."""
    return Run.create_empty(run_id)


def stamp(message: Message, *, message_id: str, run_id: int, src_node_id: int) -> None:
    """Give an outgoing message its id, run and sender, which flwr leaves to SuperLink."""
    fields = message.metadata.__dict__
    fields["_message_id"] = message_id
    fields["_run_id"] = run_id
    fields["_src_node_id"] = src_node_id


def make_message(metadata: Metadata, *, content: RecordDict | None = None, error: Error | None = None) -> Message:
    """Build a message around metadata that came over the line; exactly one of `content` and `error` is given."""
    build = cast(Any, Message)
    return cast(Message, build(metadata=metadata, content=content, error=error))


def is_unhandled(error: BaseException) -> bool:
    """Return whether a ClientApp raised this because it has no function for a message's type."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_code in _DISPATCHERS


def run_classic_client(*, app: Callable[[Message, Context], Message], server_address: str, ca: bytes | None) -> None:
    """Join a classic gRPC server with any ClientApp and return when the server ends the run.

    Raises:
        grpc.RpcError: there is no server, or it went away.
        Exception: whatever `app` raised.
    """
    from flwr.compat.client.app import start_client_internal  # gRPC's machinery, which the line does without

    def load(fab_id: str, fab_version: str, fab_hash: str) -> Any:
        return lambda message, context: app(message, context)

    start_client_internal(
        server_address=server_address,
        node_config={},
        load_client_app_fn=load,
        root_certificates=ca,
        insecure=ca is None,
    )


def serve_classic(*, client_manager: Any, address: str) -> tuple[Any, int]:
    """Listen for classic gRPC clients at `host:port` (0: any port); returns the `grpc.Server` and its port.

    Raises:
        OSError: the address is taken, or none of this machine's.
    """
    import grpc  # type: ignore[import-untyped]
    from flwr.proto.transport_pb2_grpc import add_FlowerServiceServicer_to_server
    from flwr.server.superlink.fleet.grpc_bidi.flower_service_servicer import FlowerServiceServicer

    server = grpc.server(ThreadPoolExecutor(_CLASSIC_CONNECTIONS), options=_CLASSIC_OPTIONS)
    add_FlowerServiceServicer_to_server(FlowerServiceServicer(client_manager), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen for classic clients on {address}: {error}") from error
    server.start()
    return server, int(port)
