"""How a verb ends when it cannot go on: one message that says what to do next, and the exit status that fits.

Only what is listed here ends quietly; anything else is a defect of ours and shows its traceback.
"""

from fedops_mqtt.runtime.exit_codes import ExitCode, exit_code_of_disk


class FatalError(Exception):
    """A verb cannot go on. The message says what happened and what to do next."""

    def __init__(self, message: str, code: ExitCode) -> None:
        self.code = code
        super().__init__(message)


def known_errors() -> tuple[type[Exception], ...]:
    """Return every error that `explain` has words for; loads their modules."""
    from fedops_mqtt.bus import BusError
    from fedops_mqtt.enrolment.errors import EnrolmentError
    from fedops_mqtt.protocol import IdentityError
    from fedops_mqtt.runtime.machine import NoHomeError
    from fedops_mqtt.runtime.settings_file import SettingsFileError

    return (FatalError, BusError, SettingsFileError, NoHomeError, EnrolmentError, IdentityError)


def explain(error: Exception) -> tuple[str, ExitCode]:
    """Return what to tell the person, and the exit status."""
    from fedops_mqtt import bus
    from fedops_mqtt.enrolment.errors import EnrolmentError
    from fedops_mqtt.protocol import IdentityError
    from fedops_mqtt.runtime.machine import NoHomeError
    from fedops_mqtt.runtime.settings_file import SettingsFileError

    match error:
        case FatalError():
            return str(error), error.code
        case SettingsFileError() | NoHomeError() | EnrolmentError() | IdentityError() | bus.ClientIdError():
            return str(error), ExitCode.CONFIG
        case bus.CredentialsError():
            return f"{error}. Set FEDOPS_MQTT_BROKER_USER and FEDOPS_MQTT_BROKER_PASSWORD.", ExitCode.NO_PERMISSION
        case bus.BrokerUrlError():
            return f"{error}. Correct --broker or the file it names.", ExitCode.CONFIG
        case bus.ConnectError():
            return f"{error}. Is it running? `fedops-mqtt broker` starts one here; --broker says where.", _UNAVAILABLE
        case bus.ConflictingInstanceError():
            return str(error), ExitCode.RIVAL
        case bus.PublishRefusedError():
            return str(error), ExitCode.NO_PERMISSION
        case bus.EpochFileError():
            return f"{error}. Choose a folder that can be written with --state-dir.", exit_code_of_disk(error.__cause__)
        case bus.MosquittoError():
            return str(error), _UNAVAILABLE
        case _:
            return str(error), ExitCode.FAILED


_UNAVAILABLE = ExitCode.UNAVAILABLE
