"""The errors of a fleet's folder; each one states what happened and what to do."""


class EnrolmentError(ValueError):
    """The fleet's folder or what was asked of it cannot be used; nothing was changed."""


class NoFleetError(EnrolmentError):
    """There is no fleet in this folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        super().__init__(f"no fleet in {folder}: make one with `fedops-mqtt fleet init --host BROKER_NAME`")


class FleetExistsError(EnrolmentError):
    """A fleet would be overwritten, and with it the key that all its certificates hang on."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        super().__init__(f"{folder} holds a fleet already: choose another folder, or move this one away")


class UnknownIdentityError(EnrolmentError):
    """No identity of this name is enrolled."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name!r} is not enrolled: see `fedops-mqtt fleet list`")


class IdentityExistsError(EnrolmentError):
    """An identity of this name is enrolled, perhaps with another role."""

    def __init__(self, name: str, role: str) -> None:
        self.name = name
        self.role = role
        super().__init__(
            f"{name!r} is enrolled as {role}: `fedops-mqtt fleet renew {name}` makes new keys for it, "
            f"`fedops-mqtt fleet revoke {name}` takes it back"
        )


class NameRefusedError(EnrolmentError):
    """A name cannot be a user name at the broker, or would be mistaken for another role's."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"name {name!r}: {problem}")


class HostRefusedError(EnrolmentError):
    """A host cannot stand in a certificate and in a URL."""

    def __init__(self, host: str) -> None:
        self.host = host
        try:
            advice = f"; in ASCII it is {host.encode('idna').decode()}" if host and not host.isascii() else ""
        except UnicodeError:
            advice = ""
        super().__init__(f"--host {host!r} is neither a host name nor an address{advice}")


class RegisterError(EnrolmentError):
    """The register of identities cannot be read."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}; restore it from a backup, the fleet's keys are still good")
