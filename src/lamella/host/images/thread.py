"""Blocking work beside the loop, that ends before whoever asked for it goes on: nothing is written after a cancellation."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from lamella.model.errors import Corrupt, LamellaError

T = TypeVar("T")


async def stoppable(work: Callable[[threading.Event], T]) -> T:
    """Run *work* in a thread. When the caller is cancelled its event is set, and the cancellation waits until *work* has ended."""
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await _ended(running)
        raise


async def _ended(running: asyncio.Future[Any]) -> None:
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            continue  # asked again; the answer is the same
    if not running.cancelled():
        running.exception()


async def together(works: list[Coroutine[Any, Any, None]]) -> None:
    """All of them at once; the first that fails ends the others, and its error is raised, not a group of errors."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:
        flat = _leaves(errors)
        ours = [error for error in flat if isinstance(error, LamellaError)]
        raise next((error for error in ours if isinstance(error, Corrupt)), next(iter([*ours, *flat]))) from None


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    group = cast("BaseExceptionGroup[BaseException]", error)
    return [leaf for child in group.exceptions for leaf in _leaves(child)]
