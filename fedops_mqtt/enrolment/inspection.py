"""What a certificate, a key or a CA file says of itself, for whoever checks them: names, time left, a matching pair."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

_NO_PASSPHRASE = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """What is asked of a certificate."""

    common_name: str
    not_before: datetime
    not_after: datetime

    def problem_at(self, now: datetime, *, warn_days: int) -> str | None:
        """Return what is wrong with its time, or will be soon."""
        if now < self.not_before:
            return f"is good only from {self.not_before:%Y-%m-%d}: this machine's clock says {now:%Y-%m-%d %H:%M}"
        days_left = (self.not_after - now).days
        if days_left < 0:
            return f"expired on {self.not_after:%Y-%m-%d}"
        return f"expires in {days_left} days" if days_left < warn_days else None


def read_certificate(path: Path) -> CertificateFacts:
    """Return the facts of the first certificate in a PEM file.

    Raises:
        OSError, ValueError: it cannot be read, or is none.
    """
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return CertificateFacts(
        common_name=str(names[0].value) if names else "",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def is_pair(certificate_file: Path, key_file: Path) -> bool:
    """Return whether a key belongs to a certificate.

    Raises:
        OSError, ValueError, TypeError: one of them cannot be read; TypeError: the key has a passphrase.
    """
    certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    key = serialization.load_pem_private_key(key_file.read_bytes(), password=_NO_PASSPHRASE)
    return certificate.public_key() == key.public_key()


def is_issued_by(certificate_file: Path, ca_file: Path) -> bool:
    """Return whether one of the CA file's certificates signed this one.

    Raises:
        OSError, ValueError: one of them cannot be read.
    """
    certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    for authority in x509.load_pem_x509_certificates(ca_file.read_bytes()):
        try:
            certificate.verify_directly_issued_by(authority)
        except (InvalidSignature, TypeError, ValueError):
            continue  # not this one
        return True
    return False
