"""The bearer token of one client in one run: HMAC-SHA256 of run id and MAC under the run's secret. Imports no flwr.

Tokens are compared in constant time, and never logged.
"""

import hashlib
import hmac

_CONTEXT = b"fedops-mqtt line v1"


def make_token(run_secret: bytes, run_id: str, client_mac: str) -> str:
    """Return the token (64 hexadecimal digits) that lets `client_mac` into `run_id`, and nobody else anywhere else.

    Raises:
        ValueError: the secret is empty.
    """
    if not run_secret:
        raise ValueError("run_secret is empty: anybody could make tokens; give at least 16 random bytes")
    text = b"\0".join((_CONTEXT, run_id.encode(), client_mac.encode()))
    return hmac.new(run_secret, text, hashlib.sha256).hexdigest()


def check_token(token: str | None, *, run_secret: bytes, run_id: str, client_mac: str) -> bool:
    """Tell whether `token` is the one of this client in this run, in constant time."""
    return is_same_secret(token, make_token(run_secret, run_id, client_mac))


def is_same_secret(given: str | None, expected: str) -> bool:
    """Compare two secrets in constant time; None is never equal."""
    return given is not None and hmac.compare_digest(given.encode(), expected.encode())
