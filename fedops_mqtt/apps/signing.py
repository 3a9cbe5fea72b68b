"""Signatures of apps: Ed25519 (RFC 8032) over digest, task and version, so that a signed app is good for one task only.

The private key stays in the fleet's folder. A device has the public keys of those who may sign for it from its own
settings; nothing that comes over the network adds one. `cryptography` is imported where a signature is made or checked:
a device that waits for its first start does without its 7 MB.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from typing import Annotated

from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field

from fedops_mqtt.apps.bundle import AppRefusedError
from fedops_mqtt.protocol import ReasonCode

PREFIX = "ed25519:"
_KEY_BYTES = 32
_PURPOSE = "fedops-mqtt app v1"


class AppSignature(BaseModel):
    """Who signed an app, and the signature; public."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """The first 16 hexadecimal digits of the public key's SHA-256."""
    signature: Annotated[str, Field(max_length=88)]
    """64 bytes as base64."""


class AppSigner:
    """Signs apps with a private key; made from the PEM that `make_signing_key` returned."""

    def __init__(self, pem: bytes) -> None:
        """Read the key.

        Raises:
            ValueError: the text is no Ed25519 private key.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(f"no private key: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("the key is not an Ed25519 key")
        self._key = key
        self._public_key = key.public_key().public_bytes_raw()

    @property
    def public_key(self) -> str:
        """Return the public key as devices have it in `app_signers`: `ed25519:` and base64."""
        return PREFIX + base64.b64encode(self._public_key).decode()

    def sign(self, *, digest: str, task_id: str, version: str) -> AppSignature:
        """Return the signature of one version of a task's app."""
        signature = self._key.sign(_statement(digest=digest, task_id=task_id, version=version))
        return AppSignature(key_id=key_id_of(self._public_key), signature=base64.b64encode(signature).decode())


def make_signing_key() -> bytes:
    """Return a new private key as PEM (PKCS #8); who has it can run code on the fleet's devices."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_public_key(text: str) -> bytes:
    """Return the 32 bytes of the public key that `ed25519:BASE64` names.

    Raises:
        ValueError: the text is no such key.
    """
    try:
        raw = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        if not text.startswith(PREFIX):
            raise ValueError(f"it does not begin with {PREFIX!r}")
        if len(raw) != _KEY_BYTES:
            raise ValueError(f"it has {len(raw)} bytes, an Ed25519 key has {_KEY_BYTES}")
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"{text[:100]!r} is no public key of an app signer: {error}") from error
    return raw


def key_id_of(public_key: bytes) -> str:
    """Return the name of a public key in signatures and messages."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def check_signature(
    signature: AppSignature | None,
    *,
    digest: str,
    task_id: str,
    version: str,
    signers: Iterable[str],
    min_version: str | None = None,
) -> None:
    """Accept an app that one of `signers` (public keys) has signed for this task, and that is not too old.

    Raises:
        AppRefusedError: it is unsigned, signed by somebody else, for another digest, task or version, or older than
            `min_version`.
    """
    if signature is None:
        raise AppRefusedError(ReasonCode.APP_UNSIGNED, "it is not signed; publish it with the fleet's key")
    known = {key_id_of(key): key for key in map(parse_public_key, signers)}
    key = known.get(signature.key_id)
    if key is None:
        problem = f"signed with key {signature.key_id}, which is not among app_signers here"
        raise AppRefusedError(ReasonCode.APP_UNKNOWN_SIGNER, problem)
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = base64.b64decode(signature.signature, validate=True)
        Ed25519PublicKey.from_public_bytes(key).verify(raw, _statement(digest=digest, task_id=task_id, version=version))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        problem = f"the signature is not one of this digest for task {task_id!r} and version {version!r}"
        raise AppRefusedError(ReasonCode.APP_BAD_SIGNATURE, problem) from error
    check_version(version, min_version)


def check_version(version: str, min_version: str | None) -> None:
    """Refuse a version below the one that the device's owner has pinned, however well it is signed.

    Raises:
        AppRefusedError: it is older, or no version at all.
    """
    try:
        is_older = min_version is not None and Version(version) < Version(min_version)
    except InvalidVersion as error:
        raise AppRefusedError(ReasonCode.APP_MALFORMED, f"{version[:100]!r} is no version (PEP 440)") from error
    if is_older:
        raise AppRefusedError(ReasonCode.APP_TOO_OLD, f"version {version} is older than the pinned {min_version}")


def _statement(*, digest: str, task_id: str, version: str) -> bytes:
    # Lines cannot run into each other: no part may hold a line break.
    if any("\n" in part for part in (digest, task_id, version)):
        raise ValueError("digest, task and version are one line each")
    return "\n".join((_PURPOSE, digest, task_id, version)).encode()
