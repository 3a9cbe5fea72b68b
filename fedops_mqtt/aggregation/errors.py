"""What can go wrong on the FL server; each error carries the facts and names what to do."""

from collections.abc import Sequence


class ServerError(Exception):
    """Something on the FL server failed."""


class NonFiniteModelError(ServerError):
    """A global model has values that are NaN or infinite: what is trained from it has them too."""

    def __init__(self, source: str, problem: str, advice: str) -> None:
        self.source = source
        self.problem = problem
        super().__init__(f"{source}: {problem}; {advice}")


class UnsupportedStateError(ServerError, ValueError):
    """A strategy's `save_state` returned what cannot be kept."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        super().__init__(
            f"save_state gave {kind} for {name!r}: give arrays, lists or dicts of arrays, numbers or texts"
        )


class ModelMismatchError(ServerError):
    """The stored model and the program's model are not the same shape."""

    def __init__(self, source: str, differences: Sequence[str]) -> None:
        self.source = source
        self.differences = tuple(differences)
        shown = "; ".join(self.differences[:_MAX_SHOWN])
        super().__init__(
            f"{source} does not fit this program's model ({shown}); give the changed model another model_name"
        )


class ModelTypeError(ServerError, TypeError):
    """The model given to FLServer is nothing that arrays can be taken from."""

    def __init__(self, model: object) -> None:
        super().__init__(
            f"cannot take arrays from a {type(model).__name__}: give a list or dict of numpy arrays, an ArrayRecord,"
            " or an object with state_dict(), get_weights() or get_parameters()"
        )


class UnfitStrategyError(ServerError, ValueError):
    """The strategy cannot do this run: over the line, or from the model that the run begins with."""

    def __init__(self, strategy: str, problem: str) -> None:
        self.strategy = strategy
        self.problem = problem
        super().__init__(f"strategy {strategy} cannot be used: {problem}")


_MAX_SHOWN = 3


class ServerConfigError(ServerError, ValueError):
    """The server cannot start as it is configured; names the value to set."""
