"""A private certificate authority: keys, certificates and revocation lists as PEM bytes. Touches no file.

A certificate's common name is its holder's user name at the broker. Only certificates with host names may serve;
only those without may be a device's: whoever holds one can never pose as the broker or as an FL server.
"""

import ipaddress
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
"""Ten years: renewing it means touching every device (see docs/security.md, rotation)."""

logger = logging.getLogger(__name__)

CLOCK_SLACK = timedelta(days=1)
"""A certificate is valid from a day ago: a device whose clock is some hours behind can use it at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A certificate and its private key, both PEM. The key is in no `repr`."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Credentials(serial={self.serial:x})"

    @property
    def serial(self) -> int:
        """The certificate's serial number."""
        return x509.load_pem_x509_certificate(self.certificate).serial_number

    @property
    def not_after(self) -> datetime:
        """When the certificate expires, UTC."""
        return x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc


def make_authority(name: str, now: datetime) -> Credentials:
    """Return a new root: it signs certificates and revocation lists, and no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = (
        _builder(subject, subject, key, now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
    )
    return _credentials(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Credentials, name: str, *, hosts: Sequence[str], now: datetime, days: int) -> Credentials:
    """Return a certificate for `name`: for clients, and with `hosts` (names or IP addresses) for servers too.

    It never outlives its authority.
    """
    root, root_key = _load(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    days = min(days, (root.not_valid_after_utc - now).days)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
    builder = (
        _builder(_subject(name), root.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return _credentials(builder.sign(root_key, hashes.SHA256()), key)


def make_revocation_list(
    authority: Credentials, revoked: Mapping[int, datetime], *, now: datetime, number: int, previous: bytes | None
) -> bytes:
    """Return the list of revoked serial numbers, PEM. It grows by `number` and holds as long as the authority.

    It does not expire earlier: with an expired list a broker refuses the whole fleet.
    """
    root, root_key = _load(authority)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(_after(previous, now))
        .next_update(root.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
    )
    for serial, at in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _after(previous: bytes | None, now: datetime) -> datetime:
    """Return when a new list begins: a broker that re-reads keeps the old one too and obeys the later (OpenSSL)."""
    begins = now - CLOCK_SLACK
    if previous is None:
        return begins
    before = x509.load_pem_x509_crl(previous).last_update_utc
    if before > now:  # made while the clock was ahead: until then a broker refuses everybody
        logger.warning("the revocation list was dated %s, in the future; restart the broker with the new one", before)
        return begins
    return max(begins, before + timedelta(seconds=1))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _credentials(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Credentials:
    return Credentials(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _load(authority: Credentials) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(authority.certificate), key


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """What is asked of a certificate."""

    common_name: str
    not_before: datetime
    not_after: datetime

    def problem_at(self, now: datetime, *, warn_days: int) -> str | None:
        """Return what is wrong with its time, or will be soon."""
        if now < self.not_before:
            return f"is good only from {self.not_before:%Y-%m-%d}: this machine's clock is at {now:%Y-%m-%d %H:%M}"
        days_left = (self.not_after - now).days
        if days_left < 0:
            return f"expired on {self.not_after:%Y-%m-%d}"
        return f"expires in {days_left} days" if days_left < warn_days else None


def read_certificate(path: Path) -> CertificateFacts:
    """Return the facts of the first certificate in a PEM file.

    Raises:
        OSError, ValueError: it cannot be read, or is not a certificate.
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
    key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
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
