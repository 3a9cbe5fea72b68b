"""Who may use the line: holders of a trigger's token, of a shared join token, or anybody on loopback. Imports no flwr.

Invited: only the run secret's tokens (or the join token, where there is no secret: a server that was adopted). Open:
also the join token, and nobody's token at all only on loopback with no join token set.
"""

import hashlib
import hmac
from typing import Literal

from fedops_mqtt.line.errors import LineConfigError, LineRefusedError
from fedops_mqtt.runtime.machine import is_loopback

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
    """Return whether `token` is the one of this client in this run, in constant time."""
    return is_same_secret(token, make_token(run_secret, run_id, client_mac))


def is_same_secret(given: str | None, expected: str) -> bool:
    """Compare two secrets in constant time; None is never equal."""
    return given is not None and hmac.compare_digest(given.encode(), expected.encode())


class Access:
    """The rule of one line.

    Raises:
        LineConfigError: nobody, or everybody on the network, could get in.
    """

    def __init__(
        self,
        *,
        join: Literal["invited", "open"],
        run_id: str,
        run_secret: bytes | None,
        join_token: str | None,
        host: str,
    ) -> None:
        self._run_id = run_id
        self._run_secret = run_secret
        self._join_token = join_token if join == "open" or run_secret is None else None
        self._needs_token = join == "invited" or self._join_token is not None or not is_loopback(host)
        if self._needs_token and run_secret is None and join_token is None:
            raise LineConfigError(
                f"nobody could join a line that is {join} on {host} without run secret or join token: set a join token,"
                " or listen on loopback with join = open"
            )

    def check(self, client_mac: str, token: str | None) -> None:
        """Let a request through, or raise.

        Raises:
            LineRefusedError: 401, the token is missing or not the one of this client in this run.
        """
        is_invited = self._run_secret is not None and check_token(
            token, run_secret=self._run_secret, run_id=self._run_id, client_mac=client_mac
        )
        has_join_token = self._join_token is not None and is_same_secret(token, self._join_token)
        if self._needs_token and not (is_invited or has_join_token):
            reason = "token is missing" if token is None else "token is not the one of this client in this run"
            raise LineRefusedError(status=401, code="token", reason=reason)
