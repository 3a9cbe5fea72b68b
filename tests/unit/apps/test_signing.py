"""An app is accepted for the digest, task and version that an allowed signer has signed, and for nothing else."""

import pytest

from fedops_mqtt.apps import AppRefusedError, AppSignature, AppSigner, check_signature, make_signing_key
from fedops_mqtt.apps.signing import parse_public_key
from fedops_mqtt.protocol import ReasonCode

SIGNER, OTHER = AppSigner(make_signing_key()), AppSigner(make_signing_key())
APP = {"digest": "a" * 64, "task_id": "digits", "version": "1.2.0"}
SIGNED = SIGNER.sign(**APP)


def code_of(signature: AppSignature | None, *, min_version: str | None = None, **other: str) -> ReasonCode | None:
    try:
        check_signature(signature, **{**APP, **other}, signers=[SIGNER.public_key], min_version=min_version)
    except AppRefusedError as error:
        return error.code
    return None


def test_what_an_allowed_signer_signed_is_accepted_also_after_the_wire() -> None:
    assert code_of(SIGNED) is None
    assert code_of(AppSignature.model_validate_json(SIGNED.model_dump_json())) is None


@pytest.mark.parametrize("other", [{"digest": "b" * 64}, {"task_id": "faces"}, {"version": "1.2.1"}])
def test_another_digest_task_or_version_is_refused(other: dict[str, str]) -> None:
    assert code_of(SIGNED, **other) is ReasonCode.APP_BAD_SIGNATURE


def test_the_parts_of_what_is_signed_cannot_run_into_each_other() -> None:
    with pytest.raises(ValueError, match="one line"):
        SIGNER.sign(digest="a" * 64, task_id="digits\n1", version="2")


def test_unsigned_foreign_and_damaged_signatures_are_refused() -> None:
    assert code_of(None) is ReasonCode.APP_UNSIGNED
    assert code_of(OTHER.sign(**APP)) is ReasonCode.APP_UNKNOWN_SIGNER
    assert code_of(SIGNED.model_copy(update={"signature": OTHER.sign(**APP).signature})) is ReasonCode.APP_BAD_SIGNATURE
    for damaged in ("", "!!", SIGNED.signature[:-4], "AAAA" + SIGNED.signature[4:]):
        assert code_of(SIGNED.model_copy(update={"signature": damaged})) is ReasonCode.APP_BAD_SIGNATURE


@pytest.mark.parametrize(
    ("pinned", "code"),
    [
        ("1.2.0", None),
        ("1.2", None),
        ("1.2.0rc1", None),
        ("1.2.1", ReasonCode.APP_TOO_OLD),
        ("1.10", ReasonCode.APP_TOO_OLD),
    ],
)
def test_a_signed_version_below_the_pinned_one_is_refused(pinned: str, code: ReasonCode | None) -> None:
    assert code_of(SIGNED, min_version=pinned) is code


# With names: each worker of pytest makes other keys, and all must collect the same tests.
@pytest.mark.parametrize(
    "text",
    ["", "ed25519:", "ed25519:AAAA", SIGNER.public_key[8:], SIGNER.public_key + "!"],
    ids=["empty", "nothing", "short", "no kind", "more"],
)
def test_an_invalid_public_key_is_reported(text: str) -> None:
    with pytest.raises(ValueError, match="no public key"):
        parse_public_key(text)


@pytest.mark.parametrize("pem", [b"", b"nonsense", make_signing_key()[:60]], ids=["empty", "nonsense", "cut off"])
def test_an_invalid_private_key_is_reported(pem: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        AppSigner(pem)
