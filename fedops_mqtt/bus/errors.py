"""What can go wrong between a process and the broker; each error names what happened and what to do."""


class BusError(Exception):
    """The bus could not do what was asked."""


class BrokerUrlError(BusError, ValueError):
    """A broker URL or one of its TLS files cannot be used; trying again does not help."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        self.problem = problem
        super().__init__(f"broker URL {url!r}: {problem} (expected mqtt://[user:password@]host[:port] or mqtts://)")


class ClientIdError(BrokerUrlError):
    """The broker refuses our client id; it will refuse it again."""

    def __init__(self, broker: str, client_id: str | None, problem: str) -> None:
        self.broker = broker
        self.client_id = client_id
        self.problem = problem
        Exception.__init__(
            self,
            f"the broker at {broker} refuses the client id {client_id!r} ({problem}); it is our user name, or task "
            "and MAC: take another name, or let the broker take ids of letters, digits, - and _",
        )


class ConnectError(BusError):
    """The broker was not reached, or it did not take us."""

    def __init__(self, broker: str, problem: str) -> None:
        self.broker = broker
        self.problem = problem
        super().__init__(f"no connection to the broker at {broker}: {problem}")


class ConnectTimeoutError(ConnectError):
    """The broker took the connection and never answered: it is full, too busy, or does not take this MQTT version."""

    def __init__(self, broker: str, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(broker, f"no answer within {timeout_s:g} s")


class VersionError(ConnectError):
    """The broker does not take this version of MQTT."""


class CredentialsError(ConnectError):
    """The broker refuses our user name, password or certificate."""

    def __init__(self, broker: str, user: str | None, problem: str) -> None:
        self.user = user
        who = f"user {user!r}" if user else "a client without a user name"
        super().__init__(broker, f"{who} is refused ({problem}); check user name and password")


class NotConnectedError(BusError):
    """There is no connection at present; the bus connects again by itself."""

    def __init__(self, broker: str) -> None:
        self.broker = broker
        super().__init__(f"not connected to the broker at {broker}")


class PublishRefusedError(BusError):
    """The broker refused a publish or subscription; most often its ACL does not allow it to this user."""

    def __init__(self, topic: str, reason_code: int, reason: str) -> None:
        self.topic = topic
        self.reason_code = reason_code
        self.reason = reason
        super().__init__(f"the broker refuses {topic!r}: {reason} (reason code {reason_code}); check its ACL")


class PacketTooLargeError(PublishRefusedError):
    """A message is larger than the broker takes; sent all the same, it would cost us the connection."""

    def __init__(self, topic: str, size_bytes: int, limit_bytes: int) -> None:
        self.topic = topic
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        self.reason_code = 149
        BusError.__init__(
            self,
            f"{size_bytes} bytes to {topic!r} are more than the broker takes ({limit_bytes}): raise its packet limit "
            "(mosquitto: max_packet_size)",
        )


class PublishTimeoutError(BusError):
    """The broker did not acknowledge a publish in time; whether it took it is not known."""

    def __init__(self, topic: str, timeout_s: float) -> None:
        self.topic = topic
        self.timeout_s = timeout_s
        super().__init__(f"publish to {topic!r} was not acknowledged within {timeout_s:g} s")


class ConflictingInstanceError(BusError):
    """A newer process has the same identity; this one must end and stay ended (`ExitCode.CONFLICT`)."""

    def __init__(self, topic: str, instance: str, conflicting_instance: str) -> None:
        self.topic = topic
        self.instance = instance
        self.conflicting_instance = conflicting_instance
        super().__init__(
            f"a newer process ({conflicting_instance}) publishes on {topic!r}, this one ({instance}) ends: "
            "one identity, one daemon; stop one of them or give it a MAC of its own"
        )


class EpochFileError(BusError):
    """The file that keeps the epoch cannot be written."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"cannot keep the epoch in {path}: {problem}")


class MosquittoError(BusError):
    """mosquitto could not be found or did not start; `log` holds its own last lines."""

    def __init__(self, problem: str, log: str = "") -> None:
        self.problem = problem
        self.log = log
        super().__init__(f"mosquitto: {problem}" + (f"\n{log}" if log else ""))
