"""Why an app is refused; the code is for programs, the sentence for people."""

from enum import StrEnum


class RefusalCode(StrEnum):
    """Why a device, a manager or a publisher refuses an app; it travels in a rejected start's `reason_code`."""

    MALFORMED = "app-malformed"
    """The bundle is not one that `flwr build` makes, or it holds what a bundle may not hold."""
    TOO_LARGE = "app-too-large"
    DIGEST_MISMATCH = "app-digest-mismatch"
    UNSIGNED = "app-unsigned"
    UNKNOWN_SIGNER = "app-unknown-signer"
    BAD_SIGNATURE = "app-bad-signature"
    TOO_OLD = "app-too-old"
    NOT_APPROVED = "app-not-approved"
    NOT_DELIVERED = "app-not-delivered"
    """The device takes no delivered apps, or the transfer did not come to its end."""
    DEPENDENCIES_MISSING = "dependencies-missing"


class AppRefusedError(Exception):
    """An app is refused; nothing of it was kept and nothing of it has run."""

    def __init__(self, code: RefusalCode, problem: str) -> None:
        self.code = code
        self.problem = problem
        super().__init__(f"{code}: {problem}")
