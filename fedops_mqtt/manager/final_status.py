"""The last word of an FL server that is gone, as it kept it beside its log: true whatever the bus lost of it."""

import logging
from pathlib import Path

from fedops_mqtt.protocol import Channel, ProtocolError, ServerStatus, decode, topics

logger = logging.getLogger(__name__)


def read_final_status(path: Path, *, task_id: str, run_id: str, launch: int) -> ServerStatus | None:
    """Return the final status that a launch kept; None where there is none, or (logged) where it is none of its own."""
    try:
        with path.open("rb") as file:
            word = decode(topics.server_status(task_id), file.read(Channel.SERVER_STATUS.max_payload_bytes + 1))
    except FileNotFoundError:
        return None
    except (OSError, ProtocolError) as error:
        logger.warning("an FL server's final status cannot be read", extra={"path": str(path), "problem": str(error)})
        return None
    if isinstance(word, ServerStatus) and (word.run_id, word.launch) == (run_id, launch) and word.status.is_final:
        return word
    logger.warning("a final status file is of another launch, or not final", extra={"path": str(path)})
    return None
