"""The copy of a pod's log where its file cannot be written at first."""

import io
import logging
import threading
from pathlib import Path
from typing import cast

from fedops_mqtt.manager.kubernetes_cluster import Cluster
from fedops_mqtt.manager.kubernetes_launcher import LogCopy

LIMIT_S = 300.0
"""Means "hangs"."""


class OnePod:
    """What a copy asks of a cluster: one pod, whose log has these two lines."""

    def pod_of(self, name: str) -> str:
        return f"{name}-pod"

    def log(self, pod: str) -> io.BytesIO:
        return io.BytesIO(b"2026-11-29T08:00:00Z first\n2026-11-29T08:00:01Z second\n")


class Warned(logging.Handler):
    """Sets an event at the first warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.came.set()


def test_a_log_is_copied_whole_once_its_file_can_be_written(tmp_path: Path) -> None:
    logger, warned = logging.getLogger("fedops_mqtt.manager.kubernetes_launcher"), Warned()
    logger.addHandler(warned)
    folder = tmp_path / "logs"
    folder.write_text("a file is where the folder should be")
    copy = LogCopy(cast("Cluster", OnePod()), "job", folder / "server.log")
    copy.start()
    try:
        assert warned.came.wait(LIMIT_S)
        folder.unlink()
        copy.finish(LIMIT_S)
        copy.join(LIMIT_S)
        assert (folder / "server.log").read_text() == "first\nsecond\n"
    finally:
        copy.stop()
        logger.removeHandler(warned)
