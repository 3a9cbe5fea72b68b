"""What an app needs and this Python has not."""

from importlib.metadata import version

import pytest

from fedops_mqtt.apps.bundle import missing_requirements


@pytest.mark.parametrize(
    "requirement",
    [
        "numpy",
        "NumPy>=1",
        "flwr[simulation]>=1.0",
        'no-such-package-here; python_version < "3"',
        'no-such-package-here; extra == "dev"',
        "pydantic-settings[toml]",
        "numpy @ https://example.org/numpy.whl",
    ],
)
def test_what_is_here_or_for_another_machine_is_not_missing(requirement: str) -> None:
    assert missing_requirements([requirement]) == []


def test_what_is_missing_is_listed_with_what_is_here_instead() -> None:
    wanted = ["no-such-package-here>=2", "numpy", "numpy<0.1", "flwr<1"]
    missing = missing_requirements(wanted)
    assert missing[0] == "no-such-package-here>=2"
    assert missing[1] == f"numpy<0.1 (installed: {version('numpy')})"
    assert missing[2] == f"flwr<1 (installed: {version('flwr')})"


def test_a_marker_that_compares_nonsense_is_a_problem_not_a_crash() -> None:
    assert len(missing_requirements(["numpy; os_name ~= 'posix'"])) == 1
