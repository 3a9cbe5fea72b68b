"""Access control for all HTTP listeners: the client's shim, the manager's API, the bridge.

On loopback it is open to this machine; beyond it opens only with a bearer token or a client certificate. What is let
in has a bounded body. No web page elsewhere gets in through a visitor's browser: requests and WebSockets of other
origins are refused unless they are set (RFC 6454; a plain POST and a WebSocket need no CORS), and without a token only
requests that name this machine as `localhost` or by a loopback address (a foreign name is DNS rebinding; browsers hold
`0.0.0.0` for a public address and send no header that names the page). A body that was cut off is never obeyed.
"""

import asyncio
import base64
import binascii
import contextlib
import hmac
import ipaddress
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedops_mqtt.runtime.bearer import bearer_token
from fedops_mqtt.runtime.machine import ExposedError, TlsFilesError, is_loopback

MAX_BODY_BYTES = 1024 * 1024
"""20,000 named clients are 400 kB."""

BODY_S = 60.0
"""A request's whole body arrives within this."""

UPLOAD_S = 600.0
"""A request's whole file arrives within this."""

FILE_TYPE = b"application/zip"
"""Media type of a body that may be as large as `AccessRules.max_file_bytes`."""

IS_ABSOLUTE = "is_target_absolute"
"""In a request's state: its target is a whole URL, which programs send to a proxy, and browsers only to one."""

_POLICY_VIOLATION = 1008
"""WebSocket close code (RFC 6455, 7.4.1)."""

Refuse = Callable[[HTTPStatus, str, Mapping[str, str]], ASGIApp]
"""Makes the answer of a refusal, in the form that the application's clients expect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """Who may come in. `client_ca_file` asks for certificates of that CA (mutual TLS)."""

    token: str | None = field(default=None, repr=False)
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = MAX_BODY_BYTES
    max_file_bytes: int = 0
    """Of an upload; 0: no body may be larger than others."""
    is_for_fedops: bool = False
    """The token is the password of a URL (basic authentication), and programs may have us as their `http_proxy`."""

    @property
    def is_tls(self) -> bool:
        """True when it is HTTPS."""
        return self.cert_file is not None

    @property
    def is_guarded(self) -> bool:
        """True when a token or a client certificate is required."""
        return self.token is not None or (self.is_tls and self.client_ca_file is not None)

    def check_files(self) -> None:
        """Read the TLS files, where there are some.

        Raises:
            TlsFilesError: one of them cannot be used.
        """
        if self.cert_file is None:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert_file, self.key_file)
            if self.client_ca_file is not None:
                context.load_verify_locations(self.client_ca_file)
        except OSError as error:
            files = filter(None, (self.cert_file, self.key_file, self.client_ca_file))
            raise TlsFilesError(files, error.strerror or str(error)) from error

    def for_uvicorn(self) -> dict[str, Any]:
        """Return uvicorn's TLS options."""
        if not self.is_tls:
            return {}
        asked = ssl.CERT_NONE if self.client_ca_file is None else ssl.CERT_REQUIRED
        return {
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
            "ssl_ca_certs": self.client_ca_file,
            "ssl_cert_reqs": asked,
        }


class AccessControlMiddleware:
    """ASGI middleware: who may come in, and how much a body may hold."""

    def __init__(self, app: ASGIApp, rules: AccessRules, *, refuse: Refuse) -> None:
        self._app = app
        self._rules = rules
        self._refuse = refuse
        self._within: ASGIApp = self._enter
        if rules.cors_origins:
            # Outside of the token's check: a browser's preflight request never carries one (Fetch, CORS-preflight).
            self._within = CORSMiddleware(
                self._enter, allow_origins=rules.cors_origins, allow_methods=["*"], allow_headers=["*"]
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer 401, 403, 408, 413 or 421."""
        await self._within(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._judge(scope, headers)
        if scope["type"] == "websocket":
            await (_hang_up if refusal else self._app)(scope, receive, send)
        elif refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self._take_in(scope, receive, send)

    async def _take_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_file = bool(self._rules.max_file_bytes) and dict(scope["headers"]).get(b"content-type") == FILE_TYPE
        max_bytes = self._rules.max_file_bytes if is_file else self._rules.max_body_bytes
        within_s = UPLOAD_S if is_file else BODY_S
        try:
            async with asyncio.timeout(within_s):
                body = await _read_body(scope, receive, max_bytes)
        except ClientDisconnect:
            return
        except TimeoutError:
            await self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the body took over {within_s:g} s", {})(
                scope, receive, send
            )
        except _TooLargeError:
            limit = f"the body is over {max_bytes} bytes"
            await self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, limit, {})(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)

    def _judge(self, scope: Scope, headers: Mapping[bytes, bytes]) -> ASGIApp | None:
        if not self._may_come_from(headers):
            return self._refuse(HTTPStatus.FORBIDDEN, "a page of another origin may not ask here", {})
        if self._rules.token is not None and not self._has_token(headers):
            return self._refuse(HTTPStatus.UNAUTHORIZED, *self._asked_for)
        is_proxied = self._rules.is_for_fedops and scope.get("state", {}).get(IS_ABSOLUTE, False)
        if (
            not self._rules.is_guarded
            and not is_proxied
            and not _names_this_machine(headers.get(b"host", b"").decode("latin-1"))
        ):
            why = "without a token this is only for this machine: ask for it as 127.0.0.1 or localhost"
            return self._refuse(HTTPStatus.MISDIRECTED_REQUEST, why, {})
        return None

    def _may_come_from(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a request is of no web page, of our own, or of one that the settings allow."""
        origin = headers.get(b"origin")
        if origin is None or origin.decode("latin-1") in self._rules.cors_origins:
            return True
        return _host_in(origin.decode("latin-1")) == headers.get(b"host", b"").decode("latin-1")

    @property
    def _asked_for(self) -> tuple[str, Mapping[str, str]]:
        if self._rules.is_for_fedops:
            how = {"WWW-Authenticate": 'Basic realm="fedops-mqtt bridge"'}
            return "the URL needs the token: http://MAC:TOKEN@host:port", how
        return "this API needs its bearer token", {"WWW-Authenticate": "Bearer"}

    def _has_token(self, headers: Mapping[bytes, bytes]) -> bool:
        wanted = (self._rules.token or "").encode()
        if self._rules.is_for_fedops:
            return hmac.compare_digest(credentials_in(headers)[1].encode(), wanted)
        return hmac.compare_digest((bearer_token(headers) or "").encode(), wanted)


async def _read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _TooLargeError
    body = bytearray()
    is_more = True
    while is_more:
        part = await receive()
        if part["type"] == "http.disconnect":
            raise ClientDisconnect
        body += part.get("body", b"")
        is_more = part.get("more_body", False)
        if len(body) > max_bytes:
            raise _TooLargeError
    return bytes(body)


class _TooLargeError(Exception):
    pass


_SENT_BY_BROWSERS = (b"origin", b"referer", b"sec-fetch-site", b"sec-fetch-mode")


def is_from_browser(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request was made by a web page; no program of FedOps sends one of these headers."""
    return any(name in headers for name in _SENT_BY_BROWSERS)


def credentials_in(headers: Mapping[bytes, bytes]) -> tuple[str, str]:
    """Return user name and password of a request or of its proxy's address; empty where there are none."""
    given = headers.get(b"authorization") or headers.get(b"proxy-authorization") or b""
    scheme, _, encoded = given.partition(b" ")
    if scheme.lower() != b"basic":
        return "", ""
    with contextlib.suppress(binascii.Error, UnicodeDecodeError):
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        return user, password
    return "", ""


def check_address(host: str, address: str, rules: AccessRules, *, what: str, setting: str) -> None:
    """Let an address pass, or raise; `setting` is where a token would be set.

    Raises:
        ExposedError: `host` is beyond this machine and access is not controlled.
    """
    if not rules.is_guarded and not is_loopback(host):
        raise ExposedError(what, address, setting)


def _names_this_machine(host: str) -> bool:
    """Return whether a Host header holds `localhost` or a loopback address; HTTP/1.0 has none, no browser uses it."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in ("", "localhost")
    # Not `::ffff:127.0.0.1`, which is not what we listen on, and which newer Pythons call loopback.
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None


def _host_in(origin: str) -> str | None:
    """Return the host and port of an origin; a sandboxed page's is `null`, and has none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


async def _hang_up(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": _POLICY_VIOLATION})


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands out the body that was read, then what comes after it."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return unread.pop() if unread else await receive()

    return replayed
