"""A network namespace, and the one thread of ours that lives in it with its sockets.

Threads of the daemon stay where they are: whoever wants something done in a namespace hands a function to its thread.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lamella.host.linux.syscalls import CLONE_NEWNET, setns
from lamella.host.network.nft import Nft
from lamella.host.network.rtnetlink import RouteSocket

T = TypeVar("T")


class Seat:
    """What a function finds in the namespace's thread. ``home`` is a descriptor of the namespace."""

    def __init__(self) -> None:
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.route = RouteSocket()
        self.nft = Nft()

    def close(self) -> None:
        self.nft.close()
        self.route.close()
        os.close(self.home)

    @contextlib.contextmanager
    def visit(self, namespace: int) -> Generator[None]:
        """Be in another namespace for some lines: sockets made there stay there."""
        setns(namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(self.home, CLONE_NEWNET)


class Namespace:
    """The namespace at *path*, or that of the thread that calls :meth:`open` when it is ``None``."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._executor: ThreadPoolExecutor | None = None
        self._local = threading.local()

    async def open(self) -> None:
        """Start the thread. :raise OSError: when the namespace cannot be entered or libnftables is absent."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="network")
        descriptor = os.open(self.path or "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            await asyncio.get_running_loop().run_in_executor(executor, self._sit, descriptor)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        finally:
            os.close(descriptor)
        self._executor = executor

    def _sit(self, descriptor: int) -> None:
        setns(descriptor, CLONE_NEWNET)
        self._local.seat = Seat()

    async def call(self, function: Callable[[Seat], T]) -> T:
        """Run *function* in the thread; one at a time, in order.

        A caller who is cancelled waits the few milliseconds until it is done, so that nobody loses what it made.
        """
        if self._executor is None:
            raise RuntimeError("the namespace is not open")
        future = asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(self._local.seat))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            future.exception()  # looked at, so that nobody is told of it later
            raise

    async def close(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.get_running_loop().run_in_executor(executor, lambda: self._local.seat.close())
            executor.shutdown(wait=True)
