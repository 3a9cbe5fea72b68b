"""App bundles: checked, signed, and kept on a device by digest. Imports no flwr and runs nothing of a bundle."""

from fedops_mqtt.apps.bundle import AppBundle, AppRefusedError, BundledFile, BundleLimits, read_bundle
from fedops_mqtt.apps.library import AppLibrary, KeepLimits
from fedops_mqtt.apps.signing import AppSignature, AppSigner, check_signature, make_signing_key, parse_public_key

__all__ = [
    "AppBundle",
    "AppLibrary",
    "AppRefusedError",
    "AppSignature",
    "AppSigner",
    "BundleLimits",
    "BundledFile",
    "KeepLimits",
    "check_signature",
    "make_signing_key",
    "parse_public_key",
    "read_bundle",
]
