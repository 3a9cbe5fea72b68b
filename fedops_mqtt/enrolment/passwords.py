"""Passwords as mosquitto keeps them: `user:$7$iterations$salt$hash`, PBKDF2 with SHA-512 (mosquitto_passwd(1)).

Made here and not by mosquitto's tool, which takes a password from its arguments, where others on the machine see it.
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass

_SALT_BYTES = 12
_HASH_BYTES = 64
_ITERATIONS = 101
"""mosquitto's default. Few, since the password is 256 random bits: guessing is hopeless, and a fleet that comes back
after an outage is 5,000 checks at once on the broker's one thread."""

_PASSWORD_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordHash:
    """What a broker keeps of a password; salt and hash are base64."""

    salt: str
    hash: str
    iterations: int = _ITERATIONS

    def as_line(self, user: str) -> str:
        """Return the line of mosquitto's password file."""
        return f"{user}:$7${self.iterations}${self.salt}${self.hash}"


def make_password() -> str:
    """Return a password that nobody guesses."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def hash_password(password: str) -> PasswordHash:
    """Return what the broker keeps of a password."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS, _HASH_BYTES)
    return PasswordHash(salt=base64.b64encode(salt).decode(), hash=base64.b64encode(digest).decode())
