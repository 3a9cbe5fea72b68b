"""The managers of several sites in one setting: `[NAME=]URL,…`, and the tokens that they want."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*=\s*(?=https?://)", re.IGNORECASE)
_URL = re.compile(r"https?://[^\s/,]+\S*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAddress:
    """A site's name, the URLs of its managers, and the token they want."""

    name: str
    urls: tuple[str, ...]
    """More than one: a leader and its standbys; the one that answers as leader is used."""
    token: str | None = field(default=None, repr=False)


class SiteUrlError(ValueError):
    """A setting that names managers cannot be used; the URL is left out of the message, it may hold a password."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        self.problem = problem
        super().__init__(f"a site's URL cannot be used: {problem}")


def parse_sites(managers: str | Sequence[str], token: str | None = None) -> tuple[SiteAddress, ...]:
    """Return the sites of `[NAME=]URL,…`, or of a list of such texts, in their order.

    A site without a name has that of the host in its URL (`host:port`, where several have that host). URLs with the
    same name are the managers of one site. `token` is one for all sites, or `NAME=TOKEN,…`: then each gets its own.

    Raises:
        SiteUrlError: a text is no URL, or one URL has two names, or there is none at all.
        ValueError: one of several tokens has no name, the only one has that of no site, or a character is in it that
            no HTTP header has.
    """
    texts = managers.split(",") if isinstance(managers, str) else managers
    named = [_parse_one(text.strip()) for text in texts if text.strip()]
    if not named:
        raise SiteUrlError(",".join(texts), "no URL is given")
    name_of: dict[str, str | None] = {}
    for name, url in named:
        if name_of.setdefault(url, name) != name:
            raise SiteUrlError(url, "it is given twice, under different names")
    unnamed = [_possible_names(url) for url, name in name_of.items() if name is None]
    urls: dict[str, list[str]] = {}
    for url, name in name_of.items():
        own = next(each for each in _possible_names(url) if sum(each in others for others in unnamed) <= 1)
        urls.setdefault(name or own, []).append(url)
    tokens = _parse_token(token, urls)
    return tuple(SiteAddress(name=name, urls=tuple(of), token=tokens.get(name)) for name, of in urls.items())


def _parse_one(text: str) -> tuple[str | None, str]:
    named = _NAMED.match(text)
    url = text[named.end() :] if named else text
    try:
        is_url = bool(_URL.fullmatch(url)) and urlsplit(url).port != 0  # reading the port raises, too
    except ValueError:
        is_url = False
    if not is_url:
        raise SiteUrlError(url, "it is not of this form")
    return (named[1] if named else None), url.rstrip("/")


def _possible_names(url: str) -> tuple[str, ...]:
    """Return what a site may be called after its URL, the shortest first; the last one is unique."""
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    return parts.hostname or netloc, netloc, f"{netloc}{parts.path}", url


def _parse_token(token: str | None, names: Mapping[str, Any]) -> Mapping[str, str | None]:
    if token and not (token.isascii() and token.isprintable()):
        raise ValueError("a token has printable ASCII characters only")
    pairs = [each.strip().partition("=") for each in (token or "").split(",")]
    is_by_site = len(pairs) > 1 and all(name and mark and value for name, mark, value in pairs)
    if not is_by_site and not any(mark and name in names for name, mark, _ in pairs):
        name, _, value = pairs[0]
        if len(names) > 1 and len(pairs) == 1 and name and value.strip("="):
            # One site's token, its name mistyped, or a token with = within it: no site gets what may be another's.
            raise ValueError(
                f"the name before = is of no site; sites: {', '.join(names)}. A token that has = in it is given as "
                "NAME=TOKEN for each site"
            )
        return dict.fromkeys(names, token)
    if not all(mark for _, mark, _ in pairs):
        raise ValueError(f"one of several tokens has no site's name before it; sites: {', '.join(names)}")
    return {name: value for name, _, value in pairs}
