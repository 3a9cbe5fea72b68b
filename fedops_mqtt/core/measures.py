"""Which of a run's numbers says how its model does: names are the app's own, so their endings are looked at."""

from collections.abc import Mapping

ACCURACY, LOSS = "accuracy", "loss"


def measure_name(metrics: Mapping[str, float | None], ending: str) -> str | None:
    """Return the name that is the ending itself, else the shortest that ends so; None when no value is called so."""
    named = (name for name, value in metrics.items() if name.endswith(ending) and value is not None)
    return min(sorted(named), key=len, default=None)


def measure(metrics: Mapping[str, float | None], ending: str) -> float | None:
    """Return the value that `measure_name` names."""
    name = measure_name(metrics, ending)
    return None if name is None else metrics[name]
