"""`ast.literal_eval`, one thread at a time.

Python 3.11 keeps the depth of its syntax tree conversion once for all threads: two that parse at the same time may get
"SystemError: AST constructor recursion depth mismatch". NumPy parses the header of each array so, and tests run several
clients, which a fleet has in processes of their own, as threads of one.
"""

import ast
import threading
from typing import Any

_literal_eval = ast.literal_eval
_lock = threading.RLock()


def _one_at_a_time(node_or_string: Any) -> Any:
    with _lock:
        return _literal_eval(node_or_string)


def serialize_literal_eval() -> None:
    """Let every caller in this process wait for its turn."""
    ast.literal_eval = _one_at_a_time
