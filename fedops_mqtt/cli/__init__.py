"""The command `fedops-mqtt`, one module a family of verbs; importing this package costs nothing.

A verb imports what it needs in its own body: the daemon on a device shares this entry point with the demo, and stays
small all the same.
"""

import io
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the verb that the command line names and exit with its `ExitCode`."""
    if os.getpid() == 1:
        from fedops_mqtt.cli.init import stand_in_for_init

        stand_in_for_init()
    _mend_streams()
    try:
        from fedops_mqtt.cli.entry import run

        raise SystemExit(run())
    except KeyboardInterrupt:
        # Before or after a verb's own handling of it; a shell says 130 of what Ctrl-C ended (128 + SIGINT).
        raise SystemExit(130) from None


def _mend_streams() -> None:
    """Let every text be printed: as `\\xfc` where a terminal lacks a character, nowhere where there is no stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
