"""One background task beside a block of code: the task never outlives the block, nor the block the task's failure."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager


@asynccontextmanager
async def alongside(work: Coroutine[object, object, None], *, name: str) -> AsyncIterator[None]:
    """Run `work` as a named task while the block runs.

    Leaving the block cancels it. If it fails, the block is cancelled and its error is raised: as itself where it is
    the only one, as an `ExceptionGroup` otherwise.
    """
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work, name=name)
            try:
                yield
            finally:
                task.cancel()
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) > 1:
            raise
        raise errors.exceptions[0] from None


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
