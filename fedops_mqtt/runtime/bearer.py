"""The bearer token of an HTTP request (RFC 6750), written by clients and read by servers; no imports that weigh."""

from collections.abc import Mapping


def bearer_header(token: str | None) -> dict[str, str]:
    """Return the header that carries a token; none without one."""
    return {"authorization": f"Bearer {token}"} if token else {}


def bearer_token(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the token of a request; None where there is none."""
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
