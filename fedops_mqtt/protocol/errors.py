"""What can be wrong with something said on the bus; each error carries the facts and says them."""


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
    """A payload says it is about someone other than its topic does."""

    def __init__(self, topic: str, field: str, topic_says: str, payload_says: str) -> None:
        self.topic = topic
        self.field = field
        self.topic_says = topic_says
        self.payload_says = payload_says
        super().__init__(
            f"message on {topic!r}: {field} is {payload_says!r} in the payload and {topic_says!r} in the topic"
        )
