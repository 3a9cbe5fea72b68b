"""Where the broker is and how to connect: the URL, the options, the TLS context.

A URL's user and password stay out of every log and `repr`.
"""

import asyncio
import hashlib
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fedops_mqtt.bus.errors import BrokerUrlError
from fedops_mqtt.protocol.values import MAX_PORT, has_usable_labels
from fedops_mqtt.runtime.settings import BusSettings

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
_NEXT_URL = re.compile(r"\s*,\s*(?=mqtts?://)", re.IGNORECASE)
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]+")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_-]")

MAX_INFLIGHT_PUBLISHES = 64
"""Publishes under way at a time; more does not make a broker faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusOptions:
    """How a connection behaves; times in seconds, meanings as in `settings.BusSettings`."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    keepalive_s: int = 20
    connect_timeout_s: float = 10.0
    first_try_s: float = 3.0
    """Bounds the first CONNECT to each of several brokers."""
    return_s: float = 120.0
    publish_timeout_s: float = 10.0
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 30.0
    is_mqtt5_tried: bool = True
    """False: use MQTT 3.1.1 from the start, for a broker that is known to hang on 5."""
    subscribe_qos: int = 1
    max_inflight_publishes: int = MAX_INFLIGHT_PUBLISHES

    @classmethod
    def from_settings(cls, settings: BusSettings) -> "BusOptions":
        """Return the options that the settings ask for."""
        password = settings.broker_password
        return cls(
            user=settings.broker_user,
            password=password.get_secret_value() if password else None,
            ca_file=settings.broker_ca_file,
            cert_file=settings.broker_cert_file,
            key_file=settings.broker_key_file,
            keepalive_s=settings.keepalive_s,
            connect_timeout_s=settings.connect_timeout_s,
            first_try_s=settings.broker_first_try_s,
            return_s=settings.broker_return_s,
            publish_timeout_s=settings.publish_timeout_s,
            subscribe_qos=settings.subscribe_qos,
            backoff_initial_s=settings.backoff_initial_s,
            backoff_max_s=settings.backoff_max_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """A broker URL taken apart; `str()` of it has no password."""

    host: str
    port: int
    is_tls: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ip: str | None = None
    """Which of the host's IP addresses is meant, where it has several."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        url = f"{'mqtts' if self.is_tls else 'mqtt'}://{host}:{self.port}"
        return f"{url} ({self.ip})" if self.ip else url

    async def resolve(self, timeout_s: float) -> "list[BrokerAddress]":
        """Return this address once for each IP address of its host, in the resolver's order.

        A host that has only one, or none, comes back as it is: connecting to it shows what is wrong.
        """
        found: list[str] = []
        with suppress(OSError, UnicodeError):  # a time-out is an OSError too
            async with asyncio.timeout(timeout_s):
                answers = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(address[0]) for *_, address in answers))
        return [replace(self, ip=ip) for ip in found] if len(found) > 1 else [self]


def parse_broker_urls(urls: str) -> tuple[BrokerAddress, ...]:
    """Return the parts of one broker URL, or of several with a comma between them, the preferred one first.

    Raises:
        BrokerUrlError: one of them has another form than `parse_broker_url` takes.
    """
    return tuple(dict.fromkeys(parse_broker_url(url) for url in _NEXT_URL.split(urls)))


def parse_broker_url(url: str) -> BrokerAddress:
    """Return the parts of `mqtt[s]://[user[:password]@]host[:port]`; the default ports are 1883 and 8883.

    Raises:
        BrokerUrlError: it has another form; a password in it is left out of the message.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text has a part of the URL in it, of the password perhaps
        advice = "host or port cannot be read; in a name or password write %23 for #, %2F for /, %3F for ?, %40 for @"
        raise BrokerUrlError(without_password(url), advice) from None
    problem = _find_problem(parts.scheme, parts.hostname, port, parts.path + parts.query + parts.fragment)
    if problem or parts.hostname is None:
        raise BrokerUrlError(without_password(url), problem or "no host")
    return BrokerAddress(
        host=parts.hostname,
        port=port or _DEFAULT_PORTS[parts.scheme],
        is_tls=parts.scheme == "mqtts",
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def _find_problem(scheme: str, host: str | None, port: int | None, rest: str) -> str | None:
    if scheme not in _DEFAULT_PORTS:
        return "its scheme is not mqtt or mqtts"
    if not host or not has_usable_labels(host):
        return "no usable host"
    if "," in host:
        return "several brokers are written mqtt://a,mqtt://b"
    if port == 0:
        return f"port must be 1 to {MAX_PORT}"
    if rest.strip("/"):
        return "nothing may follow the port"
    return None


def without_password(url: str) -> str:
    """Return a URL, or several, as they may be shown: without user and password, nor what may be a part of one."""
    if len(several := _NEXT_URL.split(url)) > 1:
        return ",".join(map(without_password, several))
    scheme = re.match(r"([a-z][a-z0-9+.-]*://)?", url, re.IGNORECASE)
    start = scheme.group() if scheme else ""
    _, at, host = url.removeprefix(start).rpartition("@")
    if at or host.startswith("["):
        return start + host
    name, _, port = host.partition(":")
    return start + (host if re.fullmatch(r"\d*(/[^:]*)?", port) else f"{name}:…")


def client_id_of(name: str | None) -> str | None:
    """Return the MQTT client id of a user or process: its name, if every broker takes it, else one that is as unique.

    Letters, digits, `-` and `_`: NATS from 2.14 on refuses a dot, and MQTT 3.1.1 promises no more than letters and
    digits (3.1.3.1). Without a name the broker chooses.
    """
    if name is None or _PLAIN_ID.fullmatch(name):
        return name
    return f"{_NOT_PLAIN.sub('_', name)}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def make_tls_context(address: BrokerAddress, options: BusOptions) -> ssl.SSLContext | None:
    """Return the TLS context for an `mqtts` address: the broker's name is always checked; None for `mqtt`.

    Raises:
        BrokerUrlError: a certificate or key file cannot be read, or one is given for a URL without TLS.
    """
    if not address.is_tls:
        if options.ca_file or options.cert_file:
            raise BrokerUrlError(str(address), "certificate files are set, but this URL is without TLS: use mqtts://")
        return None
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file:
            context.load_cert_chain(options.cert_file, options.key_file)
    except OSError as error:
        files = [str(file) for file in (options.ca_file, options.cert_file, options.key_file) if file]
        raise BrokerUrlError(str(address), f"cannot read {', '.join(files)}: {error}") from error
    context.sslsocket_class = _ClosedOnFailure
    return context


class _ClosedOnFailure(ssl.SSLSocket):
    """Closes itself when its handshake fails: paho 2.2 forgets such a socket open, one for every attempt."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


@dataclass(slots=True)
class VersionChoice:
    """Which MQTT version the next CONNECT uses: 5, or 3.1.1 once after the broker did not take 5.

    Never for good: a time-out may only mean a broker that is full, and a broker may be replaced by a newer one.
    """

    is_mqtt5_tried: bool
    _is_fallback: bool = False

    @property
    def is_mqtt5(self) -> bool:
        """True when the next CONNECT uses MQTT 5."""
        return self.is_mqtt5_tried and not self._is_fallback

    def failed(self, *, is_version_doubtful: bool) -> bool:
        """Note a failed CONNECT; return whether 3.1.1 is worth an attempt at once."""
        was_mqtt5 = self.is_mqtt5
        self._is_fallback = was_mqtt5 and is_version_doubtful
        return self._is_fallback

    def ended(self) -> None:
        """Note that a connection came to its end: the next one asks for MQTT 5 again."""
        self._is_fallback = False
