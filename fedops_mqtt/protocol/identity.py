"""Who is who: task ids, MAC addresses, run ids, and the two spellings of a MAC.

A MAC is `aa:bb:cc:dd:ee:ff` in every payload and `aa-bb-cc-dd-ee-ff` as topic level, user name or certificate name.
"""

import re
import secrets
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, StringConstraints


class ProtocolError(ValueError):
    """Something on the bus is not what the protocol allows; nothing was applied."""


class TopicError(ProtocolError):
    """A topic string is no topic of `fedops/v1`."""

    def __init__(self, topic: str, problem: str) -> None:
        self.topic = topic
        self.problem = problem
        super().__init__(f"topic {topic!r}: {problem}")


class IdentityError(ProtocolError):
    """A task id, MAC address or run id does not have the form the protocol needs."""

    def __init__(self, kind: str, value: object, expected: str) -> None:
        self.kind = kind
        self.value = value
        self.expected = expected
        super().__init__(f"{kind} {value!r} is not valid: expected {expected}")


class PayloadTooLargeError(ProtocolError):
    """A payload is larger than any message of the protocol may be."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(f"payload of {size_bytes} bytes is over the limit of {limit_bytes}")


class MalformedMessageError(ProtocolError):
    """A payload is not JSON, or not the message that its topic carries."""

    def __init__(self, topic: str, problem: str) -> None:
        self.topic = topic
        self.problem = problem
        super().__init__(f"message on {topic!r}: {problem}")


class MismatchedMessageError(ProtocolError):
    """The payload names another owner than its topic."""

    def __init__(self, topic: str, field: str, in_topic: str, in_payload: str) -> None:
        self.topic = topic
        self.field = field
        self.in_topic = in_topic
        self.in_payload = in_payload
        super().__init__(
            f"message on {topic!r}: {field} is {in_payload!r} in the payload and {in_topic!r} in the topic"
        )


_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NAME_FORM = "1 to 64 of A-Z a-z 0-9 . _ -, not only dots"
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_MAC_FORM = "six pairs of hexadecimal digits, such as aa:bb:cc:dd:ee:ff"


def check_task_id(value: str) -> str:
    """Return `value` if it is a task id.

    Raises:
        IdentityError: it has other characters, is longer than 64, or is only dots (a path trick).
    """
    return _check_name("task_id", value)


def check_run_id(value: str) -> str:
    """Return `value` if it is a run id; the form is that of a task id.

    Raises:
        IdentityError: as for `check_task_id`.
    """
    return _check_name("run_id", value)


def normalise_mac(value: str) -> str:
    """Return a MAC in any usual spelling (colons, hyphens, dots, none; any case) as `aa:bb:cc:dd:ee:ff`.

    Raises:
        IdentityError: there are not exactly twelve hexadecimal digits in it.
    """
    digits = re.sub(r"[:.\-]", "", value).lower() if isinstance(value, str) else ""
    mac = ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
    if not _MAC.fullmatch(mac):
        raise IdentityError("client_mac", value, _MAC_FORM)
    return mac


def mac_to_level(mac: str) -> str:
    """Return the topic level (and user name) of a MAC: `aa-bb-cc-dd-ee-ff`."""
    return normalise_mac(mac).replace(":", "-")


def level_to_mac(level: str) -> str:
    """Return the MAC of a topic level; only the exact hyphen form is one.

    Raises:
        IdentityError: the level has another form, capital letters among them: one client has one topic.
    """
    mac = level.replace("-", ":")
    if not _MAC.fullmatch(mac) or ":" in level:
        raise IdentityError("topic level", level, "aa-bb-cc-dd-ee-ff, lower case")
    return mac


def _check_name(kind: str, value: str) -> str:
    if not _NAME.fullmatch(value) or not value.strip("."):
        raise IdentityError(kind, value, _NAME_FORM)
    return value


MAX_TEXT_CHARS = 256
"""Characters of a name or address; long enough for any host name (RFC 1035: 253)."""

MAX_REASON_CHARS = 4096
"""Characters of a reason: 20 lines of a traceback fit, a log does not."""

_MAX_TASK_IN_RUN_ID = 38
"""Characters of the task id in a run id, which has 64: the rest is time and chance."""


def new_run_id(task_id: str) -> str:
    """Return the id of a new run; the ids of a task's runs sort by time."""
    return f"{task_id[:_MAX_TASK_IN_RUN_ID]}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


TaskId = Annotated[str, AfterValidator(check_task_id)]
RunId = Annotated[str, AfterValidator(check_run_id)]
MacAddress = Annotated[str, StringConstraints(pattern=f"^{_MAC.pattern}$")]
"""A MAC as payloads spell it; other spellings are refused, so that one client has one name."""
AnyMacAddress = Annotated[str, BeforeValidator(normalise_mac)]
"""A MAC as people type it, normalised: for settings and HTTP bodies."""
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]
Reason = Annotated[str, StringConstraints(max_length=MAX_REASON_CHARS)]
