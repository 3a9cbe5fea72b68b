import asyncio

import pytest

from fedops_mqtt.runtime.background import bare_error


@pytest.mark.parametrize("errors", [[KeyError("a")], [KeyError("a"), KeyError("b")]])
def test_what_failed_alike_is_raised_as_itself(errors: list[Exception]) -> None:
    with pytest.raises(KeyError, match="a"), bare_error():
        raise ExceptionGroup("of a task group", errors)


def test_what_failed_differently_is_not_hidden() -> None:
    with pytest.raises(ExceptionGroup), bare_error():
        raise ExceptionGroup("of a task group", [KeyError("a"), OSError("b")])


def test_a_cancellation_passes() -> None:
    with pytest.raises(asyncio.CancelledError), bare_error():
        raise asyncio.CancelledError
