"""Blocking work in a thread, with an end that the caller can rely on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Threads are made as they are needed. Those that wait for a filesystem that stands still must not be all there are.
_MOST = 256


def many_threads() -> None:
    """Have the running loop do blocking work in more threads than its own few (``min(32, cpus + 4)``)."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_MOST, thread_name_prefix="blocking"))


async def blocking(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """*work* in a thread. A caller that is cancelled waits for it to end first: a thread cannot be stopped, and whatever cleans up
    after the caller must not run beside it.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError, Exception):
                await asyncio.shield(task)
        raise
