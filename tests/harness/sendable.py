"""A test that prints, logs or fails with a lone surrogate is one test: its report ends no worker."""

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    return sendable((yield))


def sendable(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {sendable(name): sendable(each) for name, each in value.items()}
        case list() | tuple():
            return type(value)(sendable(each) for each in value)
        case _:
            return value
