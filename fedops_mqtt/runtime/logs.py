"""Our log format: one line an event on stderr, the fixed sentence first and its facts as `name=value`.

Only a program's entry point configures logging; libraries and embedding programs are left as they are.
"""

import logging
import sys

from pydantic_settings import BaseSettings

from fedops_mqtt.protocol import visible

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; anything else came in `extra`."""

_QUIET = ("httpx", "httpcore", "uvicorn.access", "paho")
"""They log each request or packet at info."""


class FactsFormatter(logging.Formatter):
    """Time, level, logger, sentence, facts."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with a traceback below it where there is one."""
        facts = " ".join(f"{name}={_quote(value)}" for name, value in vars(record).items() if name not in _STANDARD)
        first, mark, rest = super().format(record).partition("\n")
        return visible(f"{first}{' ' if facts else ''}{facts}{mark}{rest}", keep="\n\t")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without facts; a newline in the sentence would look like a second event."""
        record.message = visible(record.message)
        return super().formatMessage(record)


def start_logging(level: str) -> None:
    """Send everything from `level` up to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FactsFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def warn_of_exposed_files(settings: BaseSettings) -> None:
    """Point out secret files that others on this machine can read; call it once logging has started."""
    from fedops_mqtt.runtime.settings import config_file
    from fedops_mqtt.runtime.settings_file import exposed_files

    for path in exposed_files(settings, config_file()):
        logging.getLogger(__name__).warning("a secret file can be read by others: chmod 600", extra={"file": str(path)})


def mute_logging() -> None:
    """Keep the log off a screen that shows the same in its own way."""
    logging.basicConfig(level=logging.CRITICAL, handlers=[logging.NullHandler()], force=True)


def _quote(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(character in text for character in ' "\n=') else text
