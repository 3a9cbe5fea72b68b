"""Gets a delivered app ready to train: fetched, checked whole, kept by digest, and what it needs looked for.

All of it happens before a line of the app runs, in threads and child processes: the daemon's loop stays free.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedops_mqtt.apps import (
    AppBundle,
    AppLibrary,
    AppRefusedError,
    BundleLimits,
    KeepLimits,
    read_bundle,
)
from fedops_mqtt.apps.bundle import PROJECT, describe, missing_requirements
from fedops_mqtt.core.client_state import PhaseReport
from fedops_mqtt.device.app_environment import AppEnvironments
from fedops_mqtt.device.app_policy import app_folder
from fedops_mqtt.line.app_transfer import AppTransfer, TransferError
from fedops_mqtt.protocol import AppReference, Phase, ReasonCode, RunStart
from fedops_mqtt.runtime.settings import ClientSettings

logger = logging.getLogger(__name__)

_STALL_S = 60.0
"""A transfer that receives nothing for this long is broken, and goes on over a new connection."""
_DAY_S = 24 * 3600.0
_NUM_STEPS = 10
"""A transfer is reported in so many steps: each is a status that every reader of the fleet receives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveredApp:
    """An app that is ready: its folder, its ClientApp's `MODULE:ATTRIBUTE`, and the Python that has what it needs."""

    folder: Path
    client_app: str
    python: Path | None
    """None: the daemon's own."""


class AppDelivery:
    """The delivered apps of one client; `prepare` is called for one training at a time.

    `on_report` is called in the event loop, with what takes long.
    """

    def __init__(
        self, *, settings: ClientSettings, client_mac: str, folder: Path, on_report: Callable[[PhaseReport], None]
    ) -> None:
        self._settings = settings
        self._client_mac = client_mac
        self._library = AppLibrary(app_folder(folder))
        self._environments = AppEnvironments(settings=settings, state_folder=folder)
        self._on_report = on_report
        self._transfer: AppTransfer | None = None

    async def prepare(self, start: RunStart) -> DeliveredApp:
        """Return the app of a start, ready; being cancelled leaves what was fetched for the next time.

        Raises:
            AppRefusedError: it did not arrive, is not what the start names, or needs what is not here.
        """
        app = start.app
        assert app is not None
        try:
            bundle, folder = await self._get(start, app)
            # A mistake of the publisher's, not an attack: the signature covers digest and version together.
            if bundle.version != app.version:
                problem = f"the bundle is version {bundle.version}, the start has {app.version}"
                raise AppRefusedError(ReasonCode.APP_MALFORMED, problem)
            if bundle.client_app is None:
                problem = f"{PROJECT} names no clientapp in [tool.flwr.app.components]"
                raise AppRefusedError(ReasonCode.APP_MALFORMED, problem)
            self._library.note_use(app.digest)
            await asyncio.to_thread(self._library.prune, self._keep_limits(), keep=frozenset({app.digest}))
            python = await self._python_for(bundle)
        except OSError as error:
            what = error.strerror or error
            problem = f"the app cannot be kept: {what}; look at {error.filename or self._library.folder}"
            raise AppRefusedError(ReasonCode.APP_NOT_DELIVERED, problem) from error
        return DeliveredApp(folder=folder, client_app=bundle.client_app, python=python)

    def redirect(self, server_ip: str) -> None:
        """The FL server is somewhere else now: a transfer goes on there."""
        if self._transfer is not None:
            self._transfer.redirect(server_ip)

    async def _get(self, start: RunStart, app: AppReference) -> tuple[AppBundle, Path]:
        installed = await asyncio.to_thread(self._library.find, app.digest)
        if installed is not None:
            project = await asyncio.to_thread((installed / PROJECT).read_bytes)
            return describe(project, digest=app.digest, size=app.size), installed
        data, bundle = await self._fetch(start, app)
        return bundle, await asyncio.to_thread(self._library.install, data, bundle)

    async def _fetch(self, start: RunStart, app: AppReference) -> tuple[bytes, AppBundle]:
        partial = self._library.partial(app.digest)
        limits = BundleLimits(packed_bytes=self._settings.app_max_bytes)
        deadline = time.monotonic() + self._settings.app_fetch_limit_s
        # What an earlier transfer left may be wrong: then once more, from the beginning. What the server sends in this
        # one proves nothing about what was there, so its bytes are not counted for that.
        may_repeat = partial.exists()
        while True:
            await self._transfer_into(partial, start, app, deadline)
            data = await asyncio.to_thread(partial.read_bytes)
            try:
                return data, await asyncio.to_thread(read_bundle, data, digest=app.digest, limits=limits)
            except AppRefusedError as error:
                partial.unlink(missing_ok=True)
                if error.code is not ReasonCode.APP_DIGEST_MISMATCH or not may_repeat:
                    raise
                may_repeat = False

    async def _transfer_into(self, partial: Path, start: RunStart, app: AppReference, deadline: float) -> None:
        loop, steps = asyncio.get_running_loop(), _Steps(app, self._report)

        def on_progress(num_bytes: int) -> None:  # in the thread of the transfer
            loop.call_soon_threadsafe(steps.take, num_bytes)

        self._transfer = transfer = AppTransfer(
            server_ip=start.server_ip,
            digest=app.digest,
            size=app.size,
            client_mac=self._client_mac,
            token=start.token,
            ca_file=self._settings.line_ca_file,
            into=partial,
            stall_s=_STALL_S,
            limit_s=max(0.0, deadline - time.monotonic()),
            on_progress=on_progress,
        )
        steps.take(0)
        try:
            await asyncio.to_thread(transfer.run)
        except TransferError as error:
            raise AppRefusedError(ReasonCode.APP_NOT_DELIVERED, str(error)) from error
        finally:
            self._transfer = None
            transfer.stop()  # a thread cannot be cancelled
        logger.info("fetched an app", extra={"digest": app.digest, "version": app.version, "size_bytes": app.size})

    async def _python_for(self, bundle: AppBundle) -> Path | None:
        missing = await asyncio.to_thread(missing_requirements, bundle.requires)
        if not missing:
            await asyncio.to_thread(self._environments.clear)
            return None
        if self._settings.app_install == "off":
            problem = f"not installed on this device: {', '.join(missing)}"
            raise AppRefusedError(ReasonCode.DEPENDENCIES_MISSING, problem)
        return await self._environments.python_with(bundle.requires, missing, on_progress=self._report)

    def _report(self, detail: str) -> None:
        self._on_report(PhaseReport(phase=Phase.DOWNLOADING, detail=detail[:200]))

    def _keep_limits(self) -> KeepLimits:
        settings = self._settings
        return KeepLimits(
            num_apps=settings.app_keep_num, size_bytes=settings.app_keep_bytes, age_s=settings.app_keep_days * _DAY_S
        )


class _Steps:
    """Reports a transfer a tenth at a time."""

    def __init__(self, app: AppReference, report: Callable[[str], None]) -> None:
        self._app = app
        self._report = report
        self._reported = -1

    def take(self, num_bytes: int) -> None:
        step = num_bytes * _NUM_STEPS // self._app.size
        if step > self._reported:
            self._reported = step
            self._report(f"fetching app {self._app.version}: {num_bytes:,} of {self._app.size:,} bytes")
