"""A time limit that passes fails that test alone: it reports where the test stood, and the worker goes on.

pytest-timeout ends the whole worker, or raises an exception wherever the main thread happens to be, which asyncio
swallows in a callback. Here the task that runs the test is cancelled: its context managers close what they opened.
"""

import asyncio
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from types import FrameType
from typing import Any, Protocol

import pytest

STOOD = pytest.StashKey[str]()


class Limit(Protocol):
    """What pytest-timeout read from marker, option and configuration."""

    timeout: float


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Limit) -> bool:
    """Set the alarm. It comes again after another limit, for what takes no notice and for a fixture that hangs.

    An exception is raised where code computes or blocks; where the loop waits, cancelling the test's task is enough.
    """

    def alarm(_: int, frame: FrameType | None) -> None:
        task, is_first = _task_of_test(frame), STOOD not in item.stash
        if is_first:
            stood = "\n".join(_positions(frame, task))
            item.stash[STOOD] = f"the limit of {settings.timeout:g} s passed; the test stood at:\n{stood}"
        if is_first and task is not None:
            task.get_loop().call_soon_threadsafe(task.cancel)
        if not is_first or not _waits_in_loop(frame):
            raise pytest.fail.Exception(item.stash[STOOD], pytrace=False)

    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, settings.timeout)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    """Take the alarm back."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return True


def _fails_at_limit(item: pytest.Item) -> Generator[None, Any, Any]:
    """Whatever became of the exception that the alarm raised: the failure is the limit's, and in one sentence."""
    try:
        return (yield)
    finally:
        stood = item.stash.get(STOOD, None)
        if stood is not None:
            del item.stash[STOOD]
            raise pytest.fail.Exception(stood, pytrace=False) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _fails_at_limit(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _fails_at_limit(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _fails_at_limit(item))


def _task_of_test(frame: FrameType | None) -> asyncio.Task[Any] | None:
    """The task for which the main thread runs an event loop, if it runs one."""
    while frame is not None:
        if frame.f_code.co_name == "run_until_complete":
            future = frame.f_locals.get("future")
            return future if isinstance(future, asyncio.Task) else None
        frame = frame.f_back
    return None


def _waits_in_loop(frame: FrameType | None) -> bool:
    """Tell whether the event loop waits for something, and no callback computes or blocks."""
    return frame is not None and frame.f_code.co_name == "select"


def _positions(frame: FrameType | None, task: asyncio.Task[Any] | None) -> Iterator[str]:
    if task is None:
        yield "".join(traceback.format_stack(frame, limit=8))
    else:
        for each in sorted(asyncio.all_tasks(task.get_loop()), key=lambda other: other is not task):
            yield f"task {each.get_name()}" + (" (the test)" if each is task else "")
            yield from _awaited(each.get_coro())
    for thread in threading.enumerate():
        position = sys._current_frames().get(thread.ident or 0)
        if thread is not threading.main_thread() and position is not None:
            yield f"thread {thread.name}\n" + "".join(traceback.format_stack(position, limit=3))


def _awaited(coroutine: Any) -> Iterator[str]:
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            yield f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
