"""Many boxes that are already running: one an item, each used once, so many at a time."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, overload

from lamella.client import calls, template_calls, warm_calls
from lamella.client.aio.box import Box
from lamella.client.aio.streams import communicate
from lamella.client.aio.talk import Talk
from lamella.client.aio.templates import Templates
from lamella.client.result import Result
from lamella.model.errors import Invalid, LamellaError, NotFound
from lamella.model.template import Template

ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


class Boxes:
    """Copies of ``template``, ``size`` of them at a time at most. Each is removed when it was used, whatever became of it."""

    def __init__(self, talk: Talk, template: Template, size: int) -> None:
        self._talk = talk
        self.template = template
        self.size = size
        self._free = asyncio.Semaphore(size)

    @asynccontextmanager
    async def box(self) -> AsyncGenerator[Box]:
        """One that runs and does nothing, for as long as the block lasts; waits while ``size`` of them are there."""
        async with self._box(warm_calls.IDLE, attached=False) as made:
            yield made

    async def run(self, *command: str, input: bytes | None = None) -> Result:
        """What becomes of *command* in a box of its own."""
        async with self._box(list(command), attached=True) as made:
            async with made.attach(start=True) as stream:
                return await communicate(stream, command, input)

    @overload
    async def map(self, job: Callable[[Box, ItemT], Awaitable[FoundT]], items: Iterable[ItemT]) -> list[FoundT]: ...

    @overload
    async def map(self, job: Sequence[str] | str, items: Iterable[Sequence[str] | str]) -> list[Result]: ...

    async def map(self, job: Any, items: Iterable[Any]) -> list[Any]:
        """What becomes of each of *items*, in their order. *job* is a command, to which the item is added (or put where ``{}`` is): the
        :class:`Result` has its exit code and output; or a function of a box and the item.

        The first exception ends all of it, and leaves no box.
        """
        limit = asyncio.Semaphore(self.size)

        async def one(item: Any) -> Any:
            async with limit:
                if warm_calls.is_command(job):
                    return await self.run(*warm_calls.filled(job, item))
                async with self.box() as made:
                    return await job(made, item)

        tasks: list[asyncio.Task[Any]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(item)) for item in items]
        except BaseExceptionGroup as error:
            raise error.exceptions[0] from error
        return [task.result() for task in tasks]

    @asynccontextmanager
    async def _box(self, command: list[str], *, attached: bool) -> AsyncGenerator[Box]:
        name = warm_calls.name_of_box(self.template.name)
        async with self._free:
            try:
                call = warm_calls.begin(self._talk.project, self.template, name, command, attached=attached)
                yield Box(self._talk, calls.started(await self._talk.ask(call)))
            finally:
                await asyncio.shield(self._forget(name))

    async def _forget(self, name: str) -> None:
        with suppress(NotFound):
            await self._talk.ask(calls.remove(self._talk.project, "instance", name, force=True, wait=calls.SETTLE))


@asynccontextmanager
async def warm(
    talk: Talk, templates: Templates, what: str, size: int, wishes: template_calls.Wishes
) -> AsyncGenerator[Boxes]:
    """See :meth:`lamella.client.aio.layer.Layer.warm`."""
    if size < 1:
        raise Invalid(f"{size} boxes at a time are none", hint="ask for one or more", field="size")
    found = None
    # What names an image need be no name of a template.
    with suppress(NotFound, Invalid):
        found = await templates.get(what)
    if found is None:
        yours: template_calls.Wishes = {"idle": warm_calls.FORGOTTEN, "warm": size, **wishes}
        found = await templates.create(None, what, **yours)
        try:
            yield Boxes(talk, found, size)
        finally:
            await asyncio.shield(_remove(templates, found.name))
        return
    if wishes:
        raise Invalid(
            f"template {what} is there, and is what it is", hint=f"leave {', '.join(sorted(wishes))} out", field="what"
        )
    before = found.spec.warm
    if before < size:
        found = await templates.change(found.name, warm=size)
    try:
        yield Boxes(talk, found, size)
    finally:
        if before < size:
            await asyncio.shield(_give_back(templates, found.name, size, before))


async def _remove(templates: Templates, name: str) -> None:
    with suppress(NotFound):
        await templates.remove(name)


async def _give_back(templates: Templates, name: str, size: int, before: int) -> None:
    """As many wait as did, unless somebody has asked for another number since."""
    with suppress(LamellaError):
        if (await templates.get(name)).spec.warm == size:
            await templates.change(name, warm=before)
