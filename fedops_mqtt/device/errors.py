"""What keeps a client from starting: settings that say too little, an address that cannot be listened on."""


class ClientConfigError(ValueError):
    """The settings do not say which client this is, or what it trains."""

    def __init__(self, setting: str, problem: str) -> None:
        self.setting = setting
        self.problem = problem
        super().__init__(f"{setting}: {problem}")


class ShimAddressError(OSError):
    """The shim cannot listen where it was told to."""

    def __init__(self, address: str, problem: str) -> None:
        self.address = address
        self.problem = problem
        super().__init__(f"cannot listen on {address}: {problem}; choose another address with --http, or none")


class ShimExposedError(ShimAddressError):
    """The shim would listen beyond this machine, for anybody."""

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(address, problem)
        self.args = (problem,)
