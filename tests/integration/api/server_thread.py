"""A server in a thread with a loop of its own, for tests that do not run in one, or share it."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator


@contextlib.contextmanager
def serving(serve: Callable[[asyncio.Event], Awaitable[None]]) -> Iterator[None]:
    """While *serve* runs; it is given the event to set when it is ready."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    tasks: list[asyncio.Task[None]] = []

    async def run() -> None:
        ready = asyncio.Event()
        tasks.append(asyncio.ensure_future(serve(ready)))  # type: ignore[arg-type]
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({tasks[0], waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        started.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert started.wait(90)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(tasks[0].cancel)
        thread.join(90)
        loop.close()
