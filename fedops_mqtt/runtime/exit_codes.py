"""What a process of ours says with its exit status; service files and scripts rely on these numbers.

A number once given keeps its meaning. 0 is success, 1 any other failure, 2 wrong usage (Typer's own).
"""

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit statuses with a meaning of their own; 64 to 78 are those of BSD `sysexits.h`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69
    """Something that must be there is not: the broker, the manager, mosquitto."""
    NO_PERMISSION = 77
    """The broker refuses this user name, password or certificate."""
    CONFIG = 78
    """A setting, URL or file is wrong; trying again does not help."""
    RIVAL = 80
    """A newer process has taken over this identity. systemd must not restart us: `RestartPreventExitStatus=80`."""


_WRONG_PATH = {
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.ENOTDIR),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
}
"""What is wrong until somebody changes the path or its rights."""


def exit_code_of_disk(error: BaseException | None) -> ExitCode:
    """Return how to end where a file cannot be used: a disk that is full, read-only or gone may be mended meanwhile."""
    is_wrong = isinstance(error, OSError) and error.errno in _WRONG_PATH
    return ExitCode.CONFIG if is_wrong else ExitCode.UNAVAILABLE
