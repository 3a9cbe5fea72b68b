"""Which starts a device may take up, by the app that they name: its owner's rule, from its settings.

What decides comes from the settings and the disk only; a trigger carries claims, and a signature over them.
"""

import logging
from pathlib import Path

from fedops_mqtt.bus import parse_broker_urls
from fedops_mqtt.core.client import Identity
from fedops_mqtt.core.client_state import LocalStart, StartDecision
from fedops_mqtt.device.identity import ClientConfigError
from fedops_mqtt.protocol import Answer, AppReference, ReasonCode, StartTrigger, clip
from fedops_mqtt.runtime.machine import is_loopback
from fedops_mqtt.runtime.settings import AFTER_APPROVAL, IS_DELIVERED, ClientSettings

logger = logging.getLogger(__name__)


def app_folder(identity_folder: Path) -> Path:
    """Return where an identity keeps the apps that it was delivered, and its owner's approvals."""
    return identity_folder / "apps"


class AppPolicy:
    """The rule of one client.

    Raises:
        ClientConfigError: a key in `app_signers` or the version in `app_min_version` is invalid.
    """

    def __init__(self, settings: ClientSettings, identity: Identity, folder: Path) -> None:
        self._settings = settings
        self._task_id = identity.task_id
        self._folder = folder
        self._signers = tuple(settings.app_signers.replace(",", " ").split())
        self._is_delivered = settings.app in IS_DELIVERED
        if self._is_delivered:
            self._check_settings()

    def refusal(self, start: StartTrigger | LocalStart) -> StartDecision | None:
        """Return the answer to a start whose app this device does not take; None where it takes it."""
        # Here, not above: what checks signatures takes memory that a device with an app of its own does not need.
        app = start.app if isinstance(start, StartTrigger) else None
        if app is None and not self._is_delivered:
            return None
        from fedops_mqtt.apps import AppRefusedError

        try:
            if not self._is_delivered:
                problem = f"this device has an app of its own, {self._settings.app}, and takes no delivered ones"
                raise AppRefusedError(ReasonCode.APP_NOT_DELIVERED, problem)
            if app is None:
                problem = "the start names no app, and this device has none of its own; publish one for the task"
                raise AppRefusedError(ReasonCode.APP_NOT_DELIVERED, problem)
            self._check(app)
        except AppRefusedError as error:
            return StartDecision(answer=Answer.REJECTED, reason=clip(error.problem), reason_code=error.code)
        except OSError as error:  # where root has made the folder for itself
            return StartDecision(answer=Answer.REJECTED, reason=clip(f"approvals cannot be read: {error}"))
        return None

    def _check(self, app: AppReference) -> None:
        from fedops_mqtt.apps import AppLibrary, AppRefusedError
        from fedops_mqtt.apps.signing import check_version

        if not 0 < app.size <= self._settings.app_max_bytes:
            problem = f"the app has {app.size:,} bytes, this device takes 1 to {self._settings.app_max_bytes:,}"
            raise AppRefusedError(ReasonCode.APP_TOO_LARGE, problem)
        if self._takes_unsigned:
            facts = {"digest": app.digest, "version": app.version}
            logger.warning(
                "no signature is needed for this app: app_signers is empty, and every broker is this machine's",
                extra=facts,
            )
            check_version(app.version, self._settings.app_min_version)
        else:
            self._check_signature(app)
        is_approved = AppLibrary(app_folder(self._folder)).is_approved
        if self._settings.app == AFTER_APPROVAL and not is_approved(app.digest):
            # Short: a run's own reason names its clients with theirs cut, and the digest has to be in it whole.
            problem = f"not approved; fedops-mqtt app approve {app.digest}"
            raise AppRefusedError(ReasonCode.APP_NOT_APPROVED, problem)

    def _check_signature(self, app: AppReference) -> None:
        from pydantic import ValidationError

        from fedops_mqtt.apps import AppRefusedError, AppSignature, check_signature

        signature = None
        if app.key_id is not None and app.signature is not None:
            try:
                signature = AppSignature(key_id=app.key_id, signature=app.signature)
            except ValidationError as error:
                raise AppRefusedError(ReasonCode.APP_BAD_SIGNATURE, "key_id or signature has another form") from error
        check_signature(
            signature,
            digest=app.digest,
            task_id=self._task_id,
            version=app.version,
            signers=self._signers,
            min_version=self._settings.app_min_version,
        )

    @property
    def _takes_unsigned(self) -> bool:
        """True on a laptop: brokers on this machine without TLS, and no fleet that would sign."""
        brokers = parse_broker_urls(self._settings.broker)
        return not self._signers and all(not each.is_tls and is_loopback(each.host) for each in brokers)

    def _check_settings(self) -> None:
        from fedops_mqtt.apps import parse_public_key

        try:
            for key in self._signers:
                parse_public_key(key)
        except ValueError as error:
            raise ClientConfigError("app_signers", str(error)) from error
        from packaging.version import InvalidVersion, Version

        try:
            Version(self._settings.app_min_version or "0")
        except InvalidVersion as error:
            raise ClientConfigError("app_min_version", f"{error}; write it as 1.2.0") from error
        if not self._signers and not self._takes_unsigned:
            logger.warning("every app will be refused: app_signers is empty, and the broker is not this machine's")
