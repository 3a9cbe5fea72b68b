"""What process 1 of a container owes to the others: it collects every process that ended, and passes signals on.

A verb as process 1 would leave each orphan of a training as a zombie, and the kernel keeps signals without a handler
from it. So the verb runs as a child; only this small process is 1. (`docker run --init` does the same.)
"""

import os
import signal

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def stand_in_for_init() -> None:
    """Return in a child process; the caller's process stays until the child ends, and ends as it did."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return
    # A terminal's Ctrl-C reaches the child by itself: passed on it would be a second one.
    passed_on = [number for number in _PASSED_ON if number != signal.SIGINT or not os.isatty(0)]
    for number in _PASSED_ON:
        signal.signal(number, (lambda each, frame: os.kill(child, each)) if number in passed_on else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
