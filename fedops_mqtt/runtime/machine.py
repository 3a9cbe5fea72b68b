"""What this machine is called, which addresses are its own, and where a user's files are on it."""

import asyncio
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import AfterValidator

from fedops_mqtt.protocol.values import HOST, MAX_PORT, has_usable_labels

MAX_HOST_NAME = 255
"""Characters of a domain name (RFC 1035); a kernel has room for 64, a container's name may be longer."""


class NoHomeError(ValueError):
    """There is no home folder, and a path needs it."""

    def __init__(self, path: str, advice: str) -> None:
        self.path = path
        super().__init__(f"{path}: this user has no home folder; {advice}, or set HOME")


class AccessConfigError(ValueError):
    """The settings of who may come in over HTTP cannot be used."""


class TlsFilesError(AccessConfigError):
    """A certificate, its key or a CA file cannot be used; OpenSSL names no file."""

    def __init__(self, files: Iterable[Path], problem: str) -> None:
        self.files = tuple(files)
        super().__init__(f"no HTTPS with {', '.join(map(str, self.files))}: {problem}; correct the file")


class ExposedError(AccessConfigError):
    """An address beyond this machine would have no access control."""

    def __init__(self, what: str, address: str, setting: str) -> None:
        self.address = address
        super().__init__(
            f"{what} would listen on {address}, beyond this machine, for anybody: set {setting}, or "
            "FEDOPS_MQTT_HTTP_CLIENT_CA_FILE (with certificate and key) for client certificates, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine and is reached from here only; no name but `localhost` is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def default_state_dir() -> Path:
    """Return where journals live by the platform's convention (`~/.local/state/fedops-mqtt` on Linux).

    Raises:
        NoHomeError: there is no home folder.
    """
    try:
        return Path(platformdirs.user_state_dir("fedops-mqtt", appauthor=False)).expanduser()
    except RuntimeError as error:
        raise NoHomeError("~/.local/state/fedops-mqtt", "say where to keep its state with --state-dir") from error


def default_store_url() -> str:
    """Return where global models live by default (`~/.local/share/fedops-mqtt/models` on Linux).

    Raises:
        NoHomeError: there is no home folder.
    """
    try:
        return str(Path(platformdirs.user_data_dir("fedops-mqtt", appauthor=False)).expanduser() / "models")
    except RuntimeError as error:
        raise NoHomeError("~/.local/share/fedops-mqtt/models", "say where models are kept with --store") from error


def in_home(path: Path) -> Path:
    """Return a path with a leading `~` written out: a shell does that for arguments, but not in a file.

    Raises:
        NoHomeError: there is no such home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise NoHomeError(str(path), "write the whole path") from error


def host_name() -> str:
    """Return this machine's name as text that can be sent: bytes that are not UTF-8 become `?`."""
    return socket.gethostname().encode("utf-8", "replace").decode()[:MAX_HOST_NAME]


_MACHINE_ID = Path("/etc/machine-id")
_MAX_NAMED = 200
"""Characters of the name in an identity: a database has room for 256."""


def host_id(machine_id_file: Path = _MACHINE_ID) -> str:
    """Return this machine's name and, in brackets, what tells it from others of that name, on systems that have it.

    A machine's id is to be published only as a hash with a key of the application (machine-id(5)).
    """
    name = host_name()[:_MAX_NAMED]
    with suppress(OSError):
        if machine_id := machine_id_file.read_bytes().strip():
            return f"{name} ({hmac.new(machine_id, b'fedops-mqtt host', 'sha256').hexdigest()[:12]})"
    return name


def check_listen(address: str) -> str:
    """Return `host:port` or `:port`; port 0 takes a free one.

    Raises:
        ValueError: it is another form.
    """
    if not re.fullmatch(rf"{HOST}?:[0-9]{{1,5}}", address):
        raise ValueError(f"{address!r} is not host:port")
    host, port = split_address(address)
    if port > MAX_PORT:
        raise ValueError(f"{address}: a port is 0 to {MAX_PORT}")
    if host and not has_usable_labels(host):
        raise ValueError(f"{address}: {_LABELS}")
    return address


def check_host(address: str) -> str:
    """Return `host` or `host:port`; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is another form, such as a URL.
    """
    found = re.fullmatch(rf"{HOST}(:([0-9]{{1,5}}))?", address)
    if found is None:
        raise ValueError(f"{address!r} is not host or host:port (no http:// before it, brackets around IPv6)")
    if found[4] and not 0 < int(found[4]) <= MAX_PORT:
        raise ValueError(f"{address}: a port is 1 to {MAX_PORT}")
    if not has_usable_labels(found[1]):
        raise ValueError(f"{address}: {_LABELS}")
    return address


_LABELS = "between the dots of a host name are 1 to 63 characters"


def split_address(address: str, *, default_host: str = "") -> tuple[str, int]:
    """Return host (an IPv6 one without its brackets) and port of `host:port` or `:port`.

    Raises:
        ValueError: the port is not a number.
    """
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]") or default_host, int(port)


def join_address(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


UNREACHABLE = (OSError, ValueError, OverflowError)
"""What connecting to `host:port` raises: a name that cannot be looked up is a ValueError, a port an OverflowError."""


async def accepts_connections(host: str, port: int, *, within_s: float = 5.0) -> bool:
    """Return whether something accepts TCP connections there; the connection is closed at once."""
    try:
        async with asyncio.timeout(within_s):
            _, writer = await asyncio.open_connection(host, port)
    except UNREACHABLE:
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


def fill_in(advertise: str, host: str, towards: tuple[str, int]) -> str:
    """Return an address to announce: `{host}` is this machine's name, `{address}` the one it has towards a peer.

    Raises:
        OSError: there is no way to the peer.
    """
    if "{address}" in advertise:
        family, kind, *_, peer = socket.getaddrinfo(*towards, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:  # nothing is sent: the kernel chooses the way
            probe.connect(peer)
            found = str(probe.getsockname()[0])
        advertise = advertise.replace("{address}", f"[{found}]" if ":" in found else found)
    return advertise.replace("{host}", host)


def _check_url(url: str) -> str:
    if not re.match(r"https?://[^\s/]", url):
        raise ValueError("it is no URL that begins with http:// or https://")  # not repeated: it may hold a password
    return url


HttpAddress = Annotated[str, AfterValidator(check_listen)]
"""`host:port` to listen on."""
HostAndPort = Annotated[str, AfterValidator(check_host)]
"""`host` or `host:port` to reach."""
HttpUrl = Annotated[str, AfterValidator(_check_url)]
"""An HTTP server's URL."""
