"""The parts of a daemon by role, put together and taken apart in order."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import msgspec

from lamella.api.app import create_app
from lamella.api.serve import serve
from lamella.control.layer import Layer
from lamella.host.compute.driver import Home
from lamella.store.database import open_store

log = logging.getLogger("lamella.daemon")

# How often the log of changes and the events are bounded, in seconds, and how many are kept.
PRUNE_EVERY = 600.0
KEEP_CHANGES = 100_000
KEEP_EVENTS = 10_000


class Role(msgspec.Struct, kw_only=True, frozen=True):
    """What this daemon is. ``listen`` and ``control`` are ``ADDRESS:PORT``, ``underlay`` is an address."""

    name: str
    host_name: str
    database: str
    listen: str | None = None
    control: str | None = None
    bundle: Path | None = None
    underlay: str = ""


@asynccontextmanager
async def compose(home: Home, role: Role) -> AsyncGenerator[None]:
    """Everything up while inside; afterwards nothing of the daemon is, and every instance goes on.

    :raise LamellaError: when a part cannot begin.
    """
    async with AsyncExitStack() as stack:
        if role.name == "host":
            from lamella.daemon.joining import run_host

            await stack.enter_async_context(run_host(home, role))
        else:
            layer = await _control(stack, home, role)
            if role.name == "all":
                await _local_host(stack, home, role, layer)
            await _doors(stack, home, role, layer)
        yield


async def _control(stack: AsyncExitStack, home: Home, role: Role) -> Layer:
    store = open_store(role.database)
    await store.open()
    stack.push_async_callback(store.close)
    layer = Layer(store, role=role.name, seed=home.mark, database=role.database)
    await layer.open()
    stack.push_async_callback(layer.close)

    async def prune() -> None:
        while True:
            await asyncio.sleep(PRUNE_EVERY)
            await store.prune(keep_changes=KEEP_CHANGES, keep_events=KEEP_EVENTS)

    await _background(stack, asyncio.create_task(prune(), name="prune"))
    return layer


async def _local_host(stack: AsyncExitStack, home: Home, role: Role, layer: Layer) -> None:
    from lamella.daemon.wings import build_agent

    agent = build_agent(home, role.host_name, underlay=role.underlay)
    stack.push_async_callback(agent.close)
    # First what asks the host: it goes on with the next daemon, and hears of no host that is ending.
    stack.push_async_callback(layer.storage.operations.close)
    layer.connect_host(await agent.open(layer.desk), agent)


async def _doors(stack: AsyncExitStack, home: Home, role: Role, layer: Layer) -> None:
    ready = asyncio.Event()
    door = asyncio.create_task(serve(create_app(layer), uds=home.run / "lamellad.sock", ready=ready), name="api")
    await _background(stack, door)
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait((door, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if door.done():
        door.result()
    if role.listen is not None:
        from lamella.daemon.joining import open_desk

        await stack.enter_async_context(open_desk(home, role, layer))


async def _background(stack: AsyncExitStack, task: asyncio.Task[None]) -> None:
    async def end() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)
