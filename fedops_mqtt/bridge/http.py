"""How the bridge listens: plain HTTP as FedOps' programs speak it, for this machine, or for whoever knows the token.

FedOps knows no tokens, but its addresses are URLs: `http://MAC:TOKEN@host:8004` makes every HTTP library send both as
basic authentication, and a proxy's address (`http_proxy`) likewise. A web page gets nowhere: browsers name its origin.
"""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedops_mqtt.protocol import IdentityError, normalise_mac
from fedops_mqtt.runtime.http_access import AccessControlMiddleware, AccessRules, credentials_in

_SAID_BY_BROWSERS = (b"origin", b"sec-fetch-site")


def guarded(app: ASGIApp, rules: AccessRules) -> ASGIApp:
    """Return the application behind its door, with the client that a URL's user name says in each request's state."""

    async def enter(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if any(name in headers for name in _SAID_BY_BROWSERS):
            await _refuse(HTTPStatus.FORBIDDEN, "not for web pages", {})(scope, receive, send)
        else:
            scope.setdefault("state", {})["client_mac"] = _mac_of(credentials_in(headers)[0])
            await app(scope, receive, send)

    return AccessControlMiddleware(enter, rules, refuse=_refuse)


def _refuse(status: HTTPStatus, why: str, headers: Mapping[str, str]) -> ASGIApp:
    return JSONResponse({"detail": why}, status, dict(headers))


def _mac_of(user: str) -> str | None:
    try:
        return normalise_mac(user)
    except IdentityError:
        return None
