"""What a browser needs on top of the API's door: it cannot send a bearer token, so it signs in once and has a cookie.

The cookie is made of the token, never the token itself. That no page elsewhere acts through it is the door's to see.
"""

import hmac
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "fedops_mqtt"
SIGN_IN = "/sign-in"
_MAX_FORM_BYTES = 4096

_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in - fedops-mqtt</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>body{font:16px system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;margin:1rem}
form{display:grid;gap:.8rem;max-width:22rem;width:100%%}input,button{font:inherit;padding:.6rem;border-radius:6px;
border:1px solid #888}button{background:#0b6b7a;color:#fff;border:0}p{margin:0}</style>
<main><form method="post"><h1>fedops-mqtt</h1><p>%s</p><label for="token">Token of the manager</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button><p>It is FEDOPS_MQTT_MANAGER_TOKEN where the manager was started.</p></form></main></html>"""


class SessionCookieMiddleware:
    """ASGI middleware around the door; without a token it does nothing."""

    def __init__(self, door: ASGIApp, *, token: str | None, is_tls: bool) -> None:
        self._door = door
        self._token = token
        self._is_tls = is_tls
        self._pass = hmac.new((token or "").encode(), b"fedops-mqtt page", sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a signed-in browser through as if it had the token."""
        if scope["type"] not in ("http", "websocket"):
            await self._door(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._token is None or b"authorization" in headers:
            await self._door(scope, receive, send)
        elif scope["path"] == SIGN_IN and scope["type"] == "http":
            await (await self._sign_in(scope, receive))(scope, receive, send)
        elif self._has_pass(headers.get(b"cookie", "")):
            bearer = (b"authorization", f"Bearer {self._token}".encode())
            await self._door({**scope, "headers": [*scope["headers"], bearer]}, receive, send)
        elif scope["type"] == "http" and "text/html" in headers.get(b"accept", ""):
            await RedirectResponse(SIGN_IN, 303)(scope, receive, send)
        else:
            await self._door(scope, receive, send)

    def _has_pass(self, cookies: str) -> bool:
        try:
            known = SimpleCookie(cookies).get(COOKIE)
        except CookieError:
            return False
        return known is not None and hmac.compare_digest(known.value.encode(), self._pass.encode())

    async def _sign_in(self, scope: Scope, receive: Receive) -> Response:
        if scope["method"] != "POST":
            return HTMLResponse(_FORM % "This manager asks who you are.")
        given = parse_qs((await _read(receive)).decode("latin-1")).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), (self._token or "").encode()):
            return HTMLResponse(_FORM % "That is not its token.", 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self._pass, httponly=True, samesite="strict", secure=self._is_tls)
        return answer


async def _read(receive: Receive) -> bytes:
    body, is_more = b"", True
    while is_more and len(body) <= _MAX_FORM_BYTES:
        part = await receive()
        body += part.get("body", b"")
        is_more = part.get("more_body", False)
    return body[:_MAX_FORM_BYTES]
