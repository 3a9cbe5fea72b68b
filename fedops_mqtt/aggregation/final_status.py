"""How a run ended, kept on disk for the manager that launched its server: a word that no broker can lose.

It is the server's final status as it goes on the bus, and it is safe before the bus hears it.
"""

import logging
from pathlib import Path

from fedops_mqtt.device.journal import write_atomically
from fedops_mqtt.protocol import ProtocolError, ServerStatus, encode

_log = logging.getLogger(__name__)


def keep_final_status(path: Path | None, word: ServerStatus) -> None:
    """Write a final status where the manager looks for it; None: nobody does. A full disk costs the run nothing."""
    if path is None:
        return
    try:
        write_atomically(path, encode(word))
    except (OSError, ProtocolError) as error:
        _log.error("the final status is not on disk, perhaps on the bus", extra={"problem": str(error)})
