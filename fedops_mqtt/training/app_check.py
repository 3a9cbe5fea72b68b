"""A process that imports an app and reports what is wrong with it; arguments: the app, and folders to look in.

What an app imports stays out of the process that asks, and what it prints out of the answer.
"""

import os
import sys
from collections.abc import Sequence

_NICER = 10
"""The daemon starts at the same time, and is waited for."""


def main(arguments: Sequence[str]) -> int:
    """Import the app; the exit status is 1 and the last line of stderr the problem when that fails."""
    os.nice(_NICER)
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", errors="backslashreplace") as answer:
        os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
        from fedops_mqtt.training.app_loading import AppError, check_app

        try:
            check_app(arguments[0], arguments[1:])
        except AppError as error:
            print(" ".join(str(error).split()), file=answer)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
