"""How the bridge listens: plain HTTP as FedOps' programs speak it, for this machine, or for whoever knows the token.

FedOps knows no tokens, but its addresses are URLs: `http://MAC:TOKEN@host:8004` makes every HTTP library send both as
basic authentication, and a proxy's address (`http_proxy`) likewise. A web page gets nowhere: browsers name its origin.
"""

import base64
import binascii
import contextlib
import hmac
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedops_mqtt.protocol import IdentityError, normalise_mac

_SAID_BY_BROWSERS = (b"origin", b"sec-fetch-site")
_REALM = {"WWW-Authenticate": 'Basic realm="fedops-mqtt bridge"'}


class Guard:
    """ASGI middleware: who may come in, and whom the URL named."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in with the client that its user name says, or answer 401 or 403."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        user, password = credentials_in(headers)
        if self._token is not None and not hmac.compare_digest(password.encode(), self._token.encode()):
            refusal = JSONResponse({"detail": "the URL needs the token: http://MAC:TOKEN@host:port"}, 401, _REALM)
            await refusal(scope, receive, send)
        elif any(name in headers for name in _SAID_BY_BROWSERS):
            await JSONResponse({"detail": "not for web pages"}, HTTPStatus.FORBIDDEN)(scope, receive, send)
        else:
            scope.setdefault("state", {})["client_mac"] = _mac_of(user)
            await self._app(scope, receive, send)


def credentials_in(headers: dict[bytes, bytes]) -> tuple[str, str]:
    """Return user name and password of a request or of its proxy's address; empty where there are none."""
    given = headers.get(b"authorization") or headers.get(b"proxy-authorization") or b""
    scheme, _, encoded = given.partition(b" ")
    if scheme.lower() != b"basic":
        return "", ""
    with contextlib.suppress(binascii.Error, UnicodeDecodeError):
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        return user, password
    return "", ""


def _mac_of(user: str) -> str | None:
    try:
        return normalise_mac(user)
    except IdentityError:
        return None
