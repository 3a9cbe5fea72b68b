"""What a strategy's replies have to be, from the strategy itself and the server's settings."""

from flwr.server.strategy import Strategy as ClassicStrategy
from flwr.serverapp.strategy import Strategy

from fedops_mqtt.line.reply_check import ReplyCheck
from fedops_mqtt.runtime.settings import ServerSettings


def check_of(strategy: Strategy | ClassicStrategy | None, settings: ServerSettings) -> ReplyCheck:
    """Return the check; a strategy takes more by attributes named as the settings, `accept_any_shape = True`.

    None: a ServerApp's strategy, before it has started one.
    """
    chain = [strategy]
    while isinstance(inner := getattr(chain[-1], "strategy", None), Strategy | ClassicStrategy):  # a wrapper: privacy
        chain.append(inner)
    innermost = chain[-1]

    def accepts(name: str) -> bool:
        return getattr(settings, name) or any(getattr(each, name, False) is True for each in chain)

    is_classic = isinstance(innermost, ClassicStrategy)
    weight_key = "num_examples" if is_classic else getattr(innermost, "weighted_by_key", None)
    return ReplyCheck(
        any_shape=accepts("accept_any_shape"),
        nonfinite=accepts("accept_nonfinite"),
        weight_key=weight_key if isinstance(weight_key, str) else None,
        averaged=frozenset(kind for kind in ("train", "evaluate") if weight_key and _is_flowers(innermost, kind)),
    )


def _is_flowers(strategy: object, kind: str) -> bool:
    method = getattr(type(strategy), f"aggregate_{kind}", None)  # classic strategies have no aggregate_train
    return isinstance(strategy, Strategy) and str(getattr(method, "__module__", "")).startswith("flwr.")
