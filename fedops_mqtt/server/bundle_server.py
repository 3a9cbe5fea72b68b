"""The FL server program of a task whose app is a bundle: `python -m fedops_mqtt.server.bundle_server`.

The bundle that `FEDOPS_MQTT_APP_FILE` names is checked and unpacked into a folder of its own, its ServerApp runs as
any other, and the line serves the same bundle to the clients. What the run is comes in `FEDOPS_MQTT_*` variables.
"""

import importlib
import logging
import sys
from pathlib import Path

from flwr.serverapp import ServerApp

from fedops_mqtt.aggregation.errors import ServerError
from fedops_mqtt.aggregation.pipe_publisher import keep_final_status
from fedops_mqtt.aggregation.status_publisher import ServerSnapshot
from fedops_mqtt.apps import AppBundle, AppLibrary, AppRefusedError, BundleLimits, KeepLimits, read_bundle
from fedops_mqtt.apps.bundle import missing_requirements
from fedops_mqtt.bus import new_instance
from fedops_mqtt.protocol import LAST_SEQ, RunOutcome, ServerCondition, describe_error, name_error
from fedops_mqtt.runtime.key_values import NUM_ROUNDS_KEY
from fedops_mqtt.runtime.settings import ServerSettings
from fedops_mqtt.server.app import FLServer

_log = logging.getLogger(__name__)

_KEEP = KeepLimits(num_apps=50)
"""Another FL server of this machine may run any of the newest ones now."""


class BundleServerError(Exception):
    """The bundle has no ServerApp that can run here; the sentence names what to change."""


def main() -> int:
    """Do one run; the exit status is 0 only when it completed."""
    settings = ServerSettings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("flwr").handlers.clear()  # flwr installs one of its own, and everything would be logged twice
    try:
        if settings.app_file is None:
            raise BundleServerError("no app bundle is named: set FEDOPS_MQTT_APP_FILE")
        data = settings.app_file.read_bytes()
        # The manager took this bundle in under its own limit of size.
        bundle = read_bundle(data, limits=BundleLimits(packed_bytes=len(data)))
        app = load_server_app(bundle, unpack(data, bundle, settings.state_dir / "server-apps"))
        rounds = {"num_rounds": bundle.config.get(NUM_ROUNDS_KEY)}
        server = FLServer(rounds, server_app=app, app_config=bundle.config, settings=settings)
    except OSError as error:  # a disk or a port: the next launch may find it otherwise
        print(f"{error.filename or settings.state_dir}: {error.strerror or error}", file=sys.stderr)
        return 1
    except (BundleServerError, AppRefusedError, ServerError) as error:
        print(f"{settings.app_file}: {error}", file=sys.stderr)
        _keep_failure(settings, str(error))
        return 1
    result = server.start()
    print(f"{result.outcome}: {result.reason}; round {result.round}, {dict(result.metrics)}, {result.model_path}")
    return 0 if result.outcome is RunOutcome.COMPLETED else 1


def _keep_failure(settings: ServerSettings, reason: str) -> None:
    """Write how the run ended where the manager reads it: with the same bundle no other launch would do better."""
    if settings.task_id is None or settings.run_id is None:
        return  # started by hand: nobody waits for it there
    failure = ServerSnapshot(
        task_id=settings.task_id,
        run_id=settings.run_id,
        launch=settings.launch,
        instance=new_instance(),
        heartbeat_s=settings.heartbeat_s,
        agent={},
        status=ServerCondition.FAILED,
        reason=reason,
    )
    status = failure.to_status(epoch=1, seq=LAST_SEQ - 1)
    keep_final_status(settings.final_status_file, status, store=settings.store)


def unpack(data: bytes, bundle: AppBundle, folder: Path) -> Path:
    """Return the folder of a checked bundle's files, unpacked below `folder` where they are not there yet.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    library = AppLibrary(folder)
    with library.locked():  # FL servers of several runs share it
        path = library.install(data, bundle)
        library.note_use(bundle.digest)
        library.prune(_KEEP, keep=frozenset({bundle.digest}))
    return path


def load_server_app(bundle: AppBundle, folder: Path) -> ServerApp:
    """Import a bundle's ServerApp from its folder; whatever its code raises becomes the error's text.

    Raises:
        BundleServerError: there is none, or it cannot be imported.
    """
    if bundle.server_app is None:
        raise BundleServerError("pyproject.toml names no serverapp in [tool.flwr.app.components]")
    # No refusal: what only the ClientApp imports need not be here.
    if missing := ", ".join(missing_requirements(bundle.requires)):
        _log.warning("not all that the app asks for is installed on this machine", extra={"missing": missing})
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # the folder is what was signed, and stays that
    module, _, attribute = bundle.server_app.partition(":")
    try:  # not by training.app_loading: here each error is one sentence, with what is not installed
        found = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (Exception, SystemExit) as error:  # the app's own code
        known = f"; not installed on this machine: {missing}" if missing else ""
        problem = f"the ServerApp {bundle.server_app} cannot be imported, {name_error(error)}{known}"
        raise BundleServerError(describe_error(error, problem)) from error
    if not isinstance(found, ServerApp):
        raise BundleServerError(f"{bundle.server_app} is {type(found).__name__}, not a flwr ServerApp")
    return found


if __name__ == "__main__":
    sys.exit(main())
