"""The command `fedops-mqtt`, one module a family of verbs; importing this package costs nothing.

A verb imports what it needs in its own body: the daemon on a device shares this front door with the demo, and stays
small all the same.
"""

__all__ = ["main"]


def main() -> None:
    """Run the verb that the command line names and exit with its `ExitCode`."""
    from fedops_mqtt.cli.entry import run

    raise SystemExit(run())
