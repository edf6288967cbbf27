"""All instances of a project."""

import builtins
from collections.abc import AsyncIterator, Mapping
from typing import Unpack

from lamella.client import calls, wish
from lamella.client.aio.box import Box
from lamella.client.aio.talk import Talk
from lamella.model.instance import Instance, Power
from lamella.model.requests import InstanceCreate


class Instances:
    """``layer.instances``."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    async def list(self, *, labels: Mapping[str, str] | None = None) -> builtins.list[Box]:
        """Every instance that bears all of *labels*, running or not."""
        found, _ = await self._talk.find("instance", labels)
        return [Box(self._talk, instance) for instance in found]

    async def get(self, name: str) -> Box:
        """The instance with this name or id. :raise NotFound: when there is none."""
        return Box(self._talk, await self._talk.ask(calls.get(self._talk.project, "instance", name)))

    async def create(self, image: str = "", *, start: bool = True, **wishes: Unpack[wish.Wishes]) -> Box:
        """Make an instance and, unless *start* is false, wait until it has started.

        :raise Invalid: when a wish is not understood. :raise NotFound: when there is no such image.
        :raise Unavailable: when it was made and failed to start; it is there to look at.
        """
        body = wish.instance(image, wishes, power=Power.RUNNING if start else Power.STOPPED)
        return await self.create_from(body)

    async def begin(self, image: str = "", *, start: bool = True, **wishes: Unpack[wish.Wishes]) -> Box:
        """As :meth:`create`, and come back when it is written down, not when it has started."""
        body = wish.instance(image, wishes, power=Power.RUNNING if start else Power.STOPPED)
        return Box(self._talk, await self._talk.ask(calls.create_instance(self._talk.project, body, wait=None)))

    async def create_from(self, body: InstanceCreate) -> Box:
        """As :meth:`create`, from the API's own request."""
        wait = calls.SETTLE if body.spec.power is not Power.STOPPED else None
        made = await self._talk.ask(calls.create_instance(self._talk.project, body, wait=wait))
        return Box(self._talk, calls.started(made))

    async def watch(self, *, since: int | None = None) -> AsyncIterator[calls.Change[Instance]]:
        """What happens to instances after revision *since* (left out: from now on), without a gap or a repeat."""
        async for change in self._talk.watch("instance", since):
            yield change
