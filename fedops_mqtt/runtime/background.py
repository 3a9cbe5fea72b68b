"""One background task beside a block of code: the task never outlives the block, nor the block the task's failure."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager


@asynccontextmanager
async def alongside(work: Coroutine[object, object, None], *, name: str) -> AsyncIterator[None]:
    """Run `work` as a named task while the block runs.

    Leaving the block cancels it. If it fails, the block is cancelled and its error is raised, see `bare_error`.
    """
    with bare_error():
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work, name=name)
            try:
                yield
            finally:
                task.cancel()


@contextmanager
def bare_error() -> Iterator[None]:
    """Raise the error of a task group as itself where all that failed failed alike, as an `ExceptionGroup` otherwise.

    Who catches an error by its name must not have to know how many task groups it came through.
    """
    try:
        yield
    except BaseExceptionGroup as errors:
        if len({type(error) for error in errors.exceptions}) > 1:
            raise
        raise errors.exceptions[0] from None


def first_error(error: BaseException) -> BaseException:
    """Return the error itself, of groups within groups the first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def raise_if_cancelled() -> None:
    """Raise the cancellation of this task that a library has swallowed.

    `asyncio.wait_for` up to Python 3.11 returns a result that comes together with a cancellation and drops the
    latter (python/cpython#86296); a task that then goes on is waited for in vain. aiomqtt waits with it.

    Raises:
        CancelledError: this task has been cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
