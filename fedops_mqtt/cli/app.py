"""The verbs about delivered apps; `app approve` is for the device's owner, on the device."""

import re
from typing import Annotated

import typer
from click import UsageError

from fedops_mqtt.cli.examples import shows
from fedops_mqtt.cli.fatal import FatalError
from fedops_mqtt.cli.options import takes_settings
from fedops_mqtt.runtime.exit_codes import ExitCode
from fedops_mqtt.runtime.settings import ClientSettings


def make_app_app() -> typer.Typer:
    """Return the verbs about delivered apps."""
    app = typer.Typer(
        help="Deliver apps to devices, and allow them there.", no_args_is_help=True, rich_markup_mode=None
    )
    for name, verb in {"approve": approve}.items():
        app.command(name, epilog=verb.__dict__["epilog"])(verb)
    return app


@shows("fedops-mqtt app approve DIGEST --config bundle.toml", "fedops-mqtt app approve DIGEST --task-id digits")
@takes_settings(ClientSettings)
def approve(
    settings: ClientSettings,
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="SHA-256 of the bundle, as the refusal named it.")],
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take an approval back.")] = False,
) -> None:
    """Allow this device to run one delivered app, where its setting says delivered-after-approval."""
    from fedops_mqtt.apps import AppLibrary
    from fedops_mqtt.device.app_policy import app_folder
    from fedops_mqtt.device.identity import NoMacAddressError, get_mac_address
    from fedops_mqtt.device.journal import identity_dir

    if not re.fullmatch(r"[0-9a-f]{64}", digest := digest.lower()):
        raise UsageError(f"{digest!r} is no digest: 64 hexadecimal digits, as the rejected start's reason names them")
    if settings.task_id is None:
        raise UsageError(
            "say of which client: --config bundle.toml, or --task-id TASK (and --mac, --state-dir as it has)"
        )
    try:
        folder = identity_dir(settings.state_dir, settings.task_id, settings.mac or get_mac_address())
    except NoMacAddressError as error:
        raise FatalError(str(error), ExitCode.CONFIG) from error
    if not folder.is_dir():
        problem = (
            f"no client of task {settings.task_id} has run here with this MAC and state folder: {folder} is missing"
        )
        raise FatalError(f"{problem}; give --mac and --state-dir as the client has them", ExitCode.CONFIG)
    library = AppLibrary(app_folder(folder))
    if withdraw:
        library.withdraw(digest)
    else:
        library.approve(digest)
    print(f"{'no longer approved' if withdraw else 'approved'}: {digest} for task {settings.task_id}")
