"""The command `fedops-mqtt`, one module a family of verbs; importing this package costs nothing.

A verb imports what it needs in its own body: the daemon on a device shares this front door with the demo, and stays
small all the same.
"""

__all__ = ["main"]


def main() -> None:
    """Run the verb that the command line names and exit with its `ExitCode`."""
    try:
        from fedops_mqtt.cli.entry import run

        raise SystemExit(run())
    except KeyboardInterrupt:
        # Before or after a verb's own handling of it; a shell says 130 of what Ctrl-C ended (128 + SIGINT).
        raise SystemExit(130) from None
