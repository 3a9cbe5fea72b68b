"""A program whose files may not grow beyond a size, as on a full disk."""

import sys
from collections.abc import Sequence

_PROGRAM = """
import os, resource, sys
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
os.execv(sys.argv[2], sys.argv[2:])
"""


def with_file_limit(command: Sequence[str], max_bytes: int) -> list[str]:
    """Return a command that sets the limit and becomes `command`.

    Not `preexec_fn`: it forks the worker, and gRPC, which other tests may have started there, aborts forked processes.
    """
    return [sys.executable, "-c", _PROGRAM, str(max_bytes), *command]
