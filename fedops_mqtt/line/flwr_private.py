"""The only module that touches flwr's private names; when flwr moves, this file and its test are where it shows.

Used here, all of flwr 1.41:
- `flwr.supercore.task_identity.TaskIdentity.{run_id,node_id,task_id}`: process-wide; `Message(...)` reads it for new
  instructions, and strategies fail without it. (`flwr.server.compat.start_grid` sets it by itself.)
- `flwr.supercore.run.Run.create_empty` and `RunNotRunningException`: what `Grid.run` returns, and the one exception
  that `start_grid`'s background thread takes as the end (a `BaseException`).
- `Metadata.__dict__["_message_id"]`, `["_run_id"]` and `["_src_node_id"]`: read-only properties that SuperLink's own
  Grid sets this way.
- `Message(content=… | error=…, metadata=…)`: accepted at run time, not among the public overloads.
- `flwr.common.constant`: `ErrorCode`, `SUPERLINK_NODE_ID`, `SType`.
"""

from typing import Any, cast

from flwr.app import Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CLIENT_APP_RAISED",
    "NODE_UNAVAILABLE",
    "NUMPY_STYPE",
    "SERVER_NODE_ID",
    "Metadata",
    "Run",
    "RunNotRunningException",
    "make_message",
    "make_run",
    "set_identity",
    "stamp",
]

SERVER_NODE_ID: int = SUPERLINK_NODE_ID
CLIENT_APP_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
NODE_UNAVAILABLE: int = ErrorCode.NODE_UNAVAILABLE
NUMPY_STYPE: str = SType.NUMPY

_TASK_ID = 1
"""What `start_grid` uses for callers outside SuperLink."""


def set_identity(*, run_id: int, node_id: int) -> None:
    """Say who this process is, so that `Message(...)` can be built in it; it holds for the whole process."""
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
