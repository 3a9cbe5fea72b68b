"""An app as a person has it, a bundle or a project's folder, made into a signed upload."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import typer

from fedops_mqtt.apps import AppBundle, AppRefusedError, AppSignature, BundleLimits, read_bundle
from fedops_mqtt.cli.fatal import FatalError
from fedops_mqtt.runtime.exit_codes import ExitCode
from fedops_mqtt.runtime.machine import is_loopback

DEFAULT_FLEET = Path("fleet")
"""As the verbs of a fleet have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSource:
    """A bundle that was read and found whole."""

    data: bytes
    bundle: AppBundle


def read_source(source: Path) -> AppSource:
    """Return the bundle that a file is, or that a project's folder makes.

    Raises:
        FatalError: it cannot be read or built, or is no bundle.
    """
    try:
        data = _build(source) if source.is_dir() else source.read_bytes()
        return AppSource(data=data, bundle=read_bundle(data, limits=BundleLimits(packed_bytes=len(data))))
    except OSError as error:
        raise FatalError(f"{source} cannot be read: {error.strerror or error}", ExitCode.FAILED) from error
    except AppRefusedError as error:
        raise FatalError(f"{source} is no app that can be published: {error}", ExitCode.FAILED) from error


def sign(source: AppSource, task_id: str, fleet: Path | None, *, manager: str) -> AppSignature | None:
    """Return the signature by the fleet's key; None, and a sentence about it, where there is no fleet.

    Raises:
        EnrolmentError: the fleet's folder or its key cannot be used.
        FatalError: there is no fleet, and the manager is on another machine.
    """
    from fedops_mqtt.enrolment import FleetFolder
    from fedops_mqtt.enrolment.fleet import REGISTER_FILE

    if fleet is None and (DEFAULT_FLEET / REGISTER_FILE).exists():
        fleet = DEFAULT_FLEET
    if fleet is not None:
        about = source.bundle
        return FleetFolder(fleet).app_signer().sign(digest=about.digest, task_id=task_id, version=about.version)
    if not is_loopback(urlsplit(manager).hostname or ""):
        advice = "an app for a manager on another machine must be signed: --fleet FOLDER names the fleet with the key"
        raise FatalError(advice, ExitCode.CONFIG)
    typer.echo("not signed: there is no fleet here (--fleet FOLDER). Only a manager on loopback takes it.", err=True)
    return None


def _build(folder: Path) -> bytes:
    """Return what `flwr build` makes of a folder."""
    from flwr.cli.build import build_fab_from_disk

    if not (folder / "pyproject.toml").is_file():
        raise FatalError(f"{folder} is no Flower project: it has no pyproject.toml", ExitCode.FAILED)
    try:
        with warnings.catch_warnings():  # flwr 1.41 uses a name of pathspec that is deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            return build_fab_from_disk(folder)
    except OSError:
        raise
    except (Exception, SystemExit) as error:  # flwr's own code, which raises click's, pathspec's and tomli's errors
        raise FatalError(f"{folder} cannot be built: {error}", ExitCode.FAILED) from error
