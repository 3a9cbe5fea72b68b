"""Certificates: who may serve, who may not, and lists of revoked ones that a broker goes on believing."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedops_mqtt.enrolment.authority import CA_DAYS, Credentials, issue, make_authority, make_revocation_list

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
DEVICE = "02-00-00-00-00-01"


@pytest.fixture(scope="module")
def authority() -> Credentials:
    return make_authority("test fleet", NOW)


def certificate(credentials: Credentials) -> x509.Certificate:
    return x509.load_pem_x509_certificate(credentials.certificate)


def verifier(authority: Credentials, at: datetime = NOW) -> PolicyBuilder:
    return PolicyBuilder().store(Store([certificate(authority)])).time(at)


def test_a_device_is_identified_by_its_common_name(authority: Credentials) -> None:
    made = certificate(issue(authority, DEVICE, hosts=[], now=NOW, days=30))
    names = made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == [DEVICE]


def test_a_server_is_accepted_under_its_hosts_only(authority: Credentials) -> None:
    made = certificate(issue(authority, "broker", hosts=["broker.example.org", "10.0.0.5"], now=NOW, days=30))
    good = verifier(authority).build_server_verifier(x509.DNSName("broker.example.org"))
    assert good.verify(made, [])
    with pytest.raises(VerificationError):
        verifier(authority).build_server_verifier(x509.DNSName("other.example.org")).verify(made, [])


def test_a_device_certificate_cannot_serve(authority: Credentials) -> None:
    usage = certificate(issue(authority, DEVICE, hosts=[], now=NOW, days=30)).extensions.get_extension_for_class(
        x509.ExtendedKeyUsage
    )
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_nothing_signed_here_can_sign_further(authority: Credentials) -> None:
    made = certificate(issue(authority, DEVICE, hosts=[], now=NOW, days=30))
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate(authority).extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_a_certificate_never_outlives_its_authority(authority: Credentials) -> None:
    made = issue(authority, DEVICE, hosts=[], now=NOW + timedelta(days=CA_DAYS - 10), days=800)
    assert made.not_after <= authority.not_after


def test_a_device_whose_clock_is_hours_behind_can_connect(authority: Credentials) -> None:
    made = certificate(issue(authority, DEVICE, hosts=[], now=NOW, days=30))
    assert made.not_valid_before_utc < NOW - timedelta(hours=12)


def test_a_key_is_in_no_repr(authority: Credentials) -> None:
    assert "PRIVATE" not in repr(authority)


def test_a_revocation_list_names_the_revoked_and_is_later_than_the_last(authority: Credentials) -> None:
    first = make_revocation_list(authority, {}, now=NOW, number=1, previous=None)
    second = make_revocation_list(authority, {7: NOW}, now=NOW, number=2, previous=first)
    old, new = x509.load_pem_x509_crl(first), x509.load_pem_x509_crl(second)
    assert [entry.serial_number for entry in new] == [7]
    assert new.last_update_utc > old.last_update_utc
    assert new.is_signature_valid(certificate(authority).public_key())


def test_a_list_that_was_made_while_the_clock_was_ahead_is_followed_by_one_that_holds_now(
    authority: Credentials,
) -> None:
    ahead = make_revocation_list(authority, {}, now=NOW + timedelta(days=30), number=1, previous=None)
    made = x509.load_pem_x509_crl(make_revocation_list(authority, {}, now=NOW, number=2, previous=ahead))
    assert made.last_update_utc <= NOW


def test_a_revocation_list_does_not_run_out_before_its_authority(authority: Credentials) -> None:
    made = x509.load_pem_x509_crl(make_revocation_list(authority, {}, now=NOW, number=1, previous=None))
    assert made.next_update_utc == authority.not_after
