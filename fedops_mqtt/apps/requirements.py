"""What an app needs and this Python does not have; nothing is imported to find out."""

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

_ENGINE = "flwr"
"""Its extras (`flwr[simulation]` in Flower's own templates) are for Flower's engines, which do not run an app here."""


def missing_requirements(requires: Iterable[str]) -> list[str]:
    """Return each of the requirements (PEP 508) that is not met, with what is installed in its place.

    Requirements whose marker is for another Python or system are passed over; extras are looked into.
    """
    return [problem for each in requires for problem in _problems(Requirement(each), set())]


def _problems(requirement: Requirement, seen: set[str]) -> Iterator[str]:
    try:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            return
        found = distribution(requirement.name)
        if not requirement.specifier.contains(str(found.version), prereleases=True):
            yield f"{requirement} (installed: {found.version})"
            return
    except PackageNotFoundError:
        yield str(requirement)
        return
    except ValueError as error:  # a marker that compares what cannot be compared, a version that is none
        yield f"{requirement} ({error})"
        return
    extras = set() if requirement.name.lower() == _ENGINE else requirement.extras
    for extra in sorted(extras):
        key = f"{requirement.name}[{extra}]"
        if key not in seen:
            seen.add(key)
            yield from _problems_of_extra(found.requires or [], extra, seen)


def _problems_of_extra(requires: Iterable[str], extra: str, seen: set[str]) -> Iterator[str]:
    for line in requires:
        try:
            needed = Requirement(line)
            marker, needed.marker = needed.marker, None
            is_of_extra = marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
        except ValueError:  # in the metadata of an installed package: nothing that the app can help
            continue
        if is_of_extra:
            yield from _problems(needed, seen)
