"""What can be wrong on the line; each error carries the facts, also in its text. Imports no flwr."""

from fedops_mqtt.protocol import clip


class LineError(Exception):
    """Something on the line failed; nothing was half applied."""


class FrameError(LineError):
    """A frame is not what the format allows; answered with 400 and counted."""

    def __init__(self, problem: str) -> None:
        self.problem = clip(problem)  # it may show what the other end sent, which may be long
        super().__init__(f"malformed frame: {self.problem}")


class MessageTooLargeError(LineError):
    """A message is larger than the line's limit; answered with 413. `rule` names where the limit comes from."""

    def __init__(self, size_bytes: int, limit_bytes: int, *, rule: str = "max_message_bytes") -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(f"message of {size_bytes} bytes is over the line's limit of {limit_bytes} ({rule})")


class LineRefusedError(LineError):
    """The server refused a request: `status` is HTTP's, `code` the line's own; `outcome` is set when all is over."""

    def __init__(self, *, status: int, code: str, reason: str, outcome: str | None = None) -> None:
        self.status = status
        self.code = code
        self.reason = reason
        self.outcome = outcome
        super().__init__(f"line refused ({status} {code}): {reason}")


class LineConfigError(LineError, ValueError):
    """The line cannot be served as configured; names the values that do not fit together."""
