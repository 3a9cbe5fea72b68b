"""What can go wrong with stored models; each error carries the facts and names what to do."""

from fedops_mqtt.bus.address import without_password


class StoreError(Exception):
    """A model cannot be stored or read."""


class CorruptFileError(StoreError):
    """A file in the model store is not what was written: it is passed over, never trained from."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path} is corrupt: {problem}")


class StoreUrlError(StoreError, ValueError):
    """The store's URL names no place that models can be kept in."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        self.problem = problem
        super().__init__(f"model store {without_password(url)!r}: {problem}")


class UnsupportedArrayError(StoreError, ValueError):
    """An array cannot be stored: complex, bfloat16, text, objects, or a name that is no text."""

    def __init__(self, name: str, problem: str, advice: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"array {name!r} {problem} that safetensors cannot hold; {advice}")
