"""Addresses as settings have them: to listen on, to reach, and URLs; another form is refused with a sentence."""

import re
from typing import Annotated

from pydantic import AfterValidator

_MAX_PORT = 65535
_HOST = r"([^\s/@:\[\]]+|\[[0-9A-Fa-f:.]+\])"


def check_listen(address: str) -> str:
    """Return `host:port` or `:port`; port 0 takes a free one.

    Raises:
        ValueError: it is another form.
    """
    if not re.fullmatch(rf"{_HOST}?:\d{{1,5}}", address):
        raise ValueError(f"{address!r} is not host:port")
    if int(address.rpartition(":")[2]) > _MAX_PORT:
        raise ValueError(f"{address}: a port is 0 to {_MAX_PORT}")
    return address


def check_host(address: str) -> str:
    """Return `host` or `host:port`; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is another form, such as a URL.
    """
    found = re.fullmatch(rf"{_HOST}(:(\d{{1,5}}))?", address)
    if found is None:
        raise ValueError(f"{address!r} is not host or host:port (no http:// before it, brackets around IPv6)")
    if found[3] and not 0 < int(found[3]) <= _MAX_PORT:
        raise ValueError(f"{address}: a port is 1 to {_MAX_PORT}")
    return address


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
