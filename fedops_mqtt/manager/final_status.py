"""The final status of an FL server as its launch kept it: in a file of the manager's host, and in the store.

It is read where a server has ended, or is silent, and its end was not received on the bus. The store is read where the
file may be on another host: a manager that takes over has no other source once the broker has lost the retained status.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from fedops_mqtt.protocol import Channel, ProtocolError, ServerStatus, decode, topics
from fedops_mqtt.store import final_status
from fedops_mqtt.store.errors import StoreError

logger = logging.getLogger(__name__)

_READ_BYTES = Channel.SERVER_STATUS.max_payload_bytes + 1
"""What is longer is refused as too long, unread."""


def read_kept(path: Path, *, task_id: str, run_id: str, launch: int) -> ServerStatus | None:
    """Return the final status in a launch's file; None where there is no file, or (logged) it is not this launch's."""

    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(_READ_BYTES)

    return _read(read, str(path), task_id=task_id, run_id=run_id, launch=launch)


def read_stored(store: str, *, task_id: str, run_id: str, launch: int) -> ServerStatus | None:
    """Return the final status that a launch wrote into the store; None as for `read_kept`, or of an earlier launch."""

    def read() -> bytes:
        return final_status.read_final_status(store, task_id=task_id, run_id=run_id, max_bytes=_READ_BYTES)

    return _read(read, f"the store, run {run_id}", task_id=task_id, run_id=run_id, launch=launch)


def _read(read: Callable[[], bytes], place: str, *, task_id: str, run_id: str, launch: int) -> ServerStatus | None:
    try:
        status = decode(topics.server_status(task_id), read())
    except FileNotFoundError:
        return None
    except (OSError, StoreError, ProtocolError) as error:
        _warn(place, str(error))
        return None
    if not isinstance(status, ServerStatus) or not status.status.is_final:
        _warn(place, "it is not final")
    elif (status.run_id, status.launch) != (run_id, launch):
        _warn(place, "it is of another launch")
    else:
        return status
    return None


def _warn(place: str, problem: str) -> None:
    logger.warning("an FL server's final status cannot be used", extra={"place": place, "problem": problem})
