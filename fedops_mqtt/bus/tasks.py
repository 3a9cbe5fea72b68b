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
