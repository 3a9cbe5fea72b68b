"""The manager's HTTP address: where it listens and how it serves; `door` says who may come in."""

import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedops_mqtt.manager.api.app import problem
from fedops_mqtt.manager.errors import ExposedApiError
from fedops_mqtt.runtime.http_access import AccessControlMiddleware, AccessRules, ExposedError
from fedops_mqtt.runtime.http_server import listen as open_address
from fedops_mqtt.runtime.http_server import serving, url_of
from fedops_mqtt.runtime.machine import is_loopback
from fedops_mqtt.runtime.settings import ManagerSettings

logger = logging.getLogger(__name__)

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - where `:8004` means every address it is refused without a token


def access_rules(settings: ManagerSettings) -> AccessRules:
    """Return who may come in, by the settings."""
    token = settings.manager_token
    return AccessRules(
        token=token.get_secret_value() if token else None,
        cert_file=settings.http_cert_file,
        key_file=settings.http_key_file,
        client_ca_file=settings.http_client_ca_file,
        max_file_bytes=settings.app_max_bytes,
        cors_origins=tuple(filter(None, settings.http_cors.replace(",", " ").split())),
    )


def guarded(app: ASGIApp, rules: AccessRules) -> ASGIApp:
    """Return the application behind its door; who is turned away gets a problem document."""

    def refuse(status: HTTPStatus, why: str, headers: Mapping[str, str]) -> ASGIApp:
        return problem(status, why, headers=dict(headers))

    return AccessControlMiddleware(app, rules, refuse=refuse)


def listen(address: str, rules: AccessRules) -> socket.socket:
    """Return a socket that listens at `host:port`; port 0 takes a free one.

    Raises:
        ExposedApiError: the host is beyond this machine and anybody would be let in.
        OSError: the address is taken or is none of this machine.
    """
    try:
        listening = open_address(
            address, rules, what="the API", setting="FEDOPS_MQTT_MANAGER_TOKEN", default_host=_EVERYWHERE
        )
    except ExposedError as error:
        raise ExposedApiError(address, str(error)) from error
    if rules.token is not None and not rules.is_tls and not is_loopback(listening.getsockname()[0]):
        logger.warning("the API's token crosses the network in the clear: set http_cert_file", extra={"at": address})
    return listening


LOOK_AGAIN_S = 2
"""Between two looks of an open page."""

_SHUTDOWN_S = 1
_SAID = "this manager is on standby, another one leads; it takes over when that one goes"

_PAGE = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>On standby - fedops-mqtt</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>body{{font:16px/1.5 system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;margin:1rem}}
main{{max-width:34rem}}h1{{margin:0 0 .8rem;font-size:1.5rem}}p{{margin:.6rem 0}}
code{{display:block;padding:.5rem .7rem;border:1px solid #888;border-radius:6px;overflow-wrap:anywhere}}</style>
<main><h1>This manager is on standby</h1>
<p>Another manager leads. This one takes over when that one goes, and this page becomes the fleet's by itself:
there is nothing to do here.</p>
<p>To see the fleet now, open the leader's address. The broker knows it:</p>
<p><code>mosquitto_sub -t fedops/v1/manager/status -C 1</code></p></main>
<script>setInterval(async () => {{
  try {{ const page = await fetch(location.href, {{headers: {{Accept: "text/html"}}}});
    if (!(await page.text()).includes("<title>" + document.title)) location.reload(); }}
  catch (nobody) {{ /* for a moment nobody listens: look again */ }}
}}, {1000 * LOOK_AGAIN_S});</script></html>"""


@asynccontextmanager
async def standing_by(listening: socket.socket, rules: AccessRules) -> AsyncIterator[None]:
    """Answer while the block runs; the socket stays open for whoever leads then."""
    app = _with_page(guarded(problem(HTTPStatus.SERVICE_UNAVAILABLE, _SAID, headers=_LATER), rules))
    logger.info("answering on standby", extra={"at": url_of(listening, rules)})
    async with serving(app, listening.dup(), rules, name="standby", shutdown_s=_SHUTDOWN_S):
        yield


_LATER = {"Retry-After": str(LOOK_AGAIN_S)}


def _with_page(others: ASGIApp) -> ASGIApp:
    page = HTMLResponse(_PAGE, headers={"Cache-Control": "no-store"})

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        accepts = dict(scope.get("headers", ())).get(b"accept", b"")
        is_person = scope["type"] == "http" and b"text/html" in accepts
        await (page if is_person else others)(scope, receive, send)

    return answer
