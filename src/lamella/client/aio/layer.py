"""The layer: the way in, asynchronously."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Unpack

from lamella.client import address, calls, template_calls, wish
from lamella.client.aio.backups import Backups, Policies, Repositories
from lamella.client.aio.balancers import Balancers
from lamella.client.aio.box import Box
from lamella.client.aio.firewalls import Firewalls
from lamella.client.aio.hosts import Hosts
from lamella.client.aio.images import Images
from lamella.client.aio.instances import Instances
from lamella.client.aio.networks import Networks
from lamella.client.aio.routers import Addresses, Routers
from lamella.client.aio.storage import Pools, Snapshots, Volumes
from lamella.client.aio.talk import Progress, Talk
from lamella.client.aio.templates import Templates
from lamella.client.aio.warm import Boxes, warm
from lamella.client.aio.wire import Wire
from lamella.model.contract import Comparison, WhyNot
from lamella.model.errors import LamellaError, NotFound
from lamella.model.operation import Event
from lamella.model.requests import About, Diagnosis
from lamella.model.storage_report import Report
from lamella.model.usage import Usage


class Layer:
    """One daemon, seen from one project. Use as an async context manager, or :meth:`close` it."""

    def __init__(self, wire: Wire, project: str) -> None:
        self._talk = Talk(wire, project)
        self.project = project
        self.instances = Instances(self._talk)
        self.images = Images(self._talk)
        self.networks, self.firewalls = Networks(self._talk), Firewalls(self._talk)
        self.routers, self.addresses, self.balancers = Routers(self._talk), Addresses(self._talk), Balancers(self._talk)
        self.pools, self.volumes, self.snapshots = Pools(self._talk), Volumes(self._talk), Snapshots(self._talk)
        self.repositories, self.backups = Repositories(self._talk), Backups(self._talk)
        self.policies, self.hosts = Policies(self._talk), Hosts(self._talk)
        self.templates = Templates(self._talk)

    @asynccontextmanager
    async def run(self, image: str = "", *, keep: bool = False, **wishes: Unpack[wish.Wishes]) -> AsyncGenerator[Box]:
        """An instance for as long as the block lasts; it is removed afterwards unless *keep* is set.

        :raise LamellaError: as :meth:`lamella.client.aio.instances.Instances.create`; what failed to start is removed, too.
        """
        # A copy that waits is given its command when it is taken; everything else is made, and then begun.
        made = await self.instances.begin(image, start="template" in wishes, **wishes)
        try:
            if "template" in wishes:
                calls.started(await made.wait_for("settled", timeout=calls.SETTLE))
            else:
                await made.start()
            yield made
        finally:
            if not keep:
                await asyncio.shield(_forget(made))

    @asynccontextmanager
    async def warm(self, what: str, *, size: int = 1, **wishes: Unpack[template_calls.Wishes]) -> AsyncGenerator[Boxes]:
        """Boxes that are already running when one asks for them, *size* at a time: ``async with layer.warm("py", size=8) as boxes``.

        *what* is a template, of which *size* copies wait meanwhile; or an image, of which a template is made for as long as the block
        lasts, by *wishes*.

        :raise NotFound: when there is neither. :raise Invalid: when there are wishes, and the template is there.
        """
        async with warm(self._talk, self.templates, what, size, wishes) as boxes:
            yield boxes

    async def about(self) -> About:
        """Which layer answers, and who you are to it."""
        return await self._talk.ask(calls.about())

    async def doctor(self) -> Diagnosis:
        """What was looked at on the host, and what to do about what is wrong."""
        return await self._talk.ask(calls.doctor())

    async def fsck(
        self, *, repair: bool = False, remove_orphans: bool = False, progress: Progress | None = None
    ) -> Report:
        """Compare what is known of volumes and snapshots with what lies in the pools; with *repair* mend what can be mended."""
        return await self.pools.fsck(repair=repair, remove_orphans=remove_orphans, progress=progress)

    async def compare(self) -> Comparison:
        """The contracts of all isolation levels side by side."""
        return await self._talk.ask(calls.compare())

    async def why_not(self, level: str) -> WhyNot:
        """What the isolation *level* needs on every host, and which of it is missing."""
        return await self._talk.ask(calls.why_not(level))

    async def usage(self) -> dict[str, Usage]:
        """What every running instance uses now, by name."""
        return await self._talk.ask(calls.usage(self.project))

    async def events(self, *, follow: bool = False) -> AsyncIterator[Event]:
        """What happened, oldest first; with *follow* what happens from now on, too."""
        past, revision = await self._talk.find("event")
        for event in sorted(past, key=lambda event: event.id):
            yield event
        if follow:
            async for change in self._talk.watch("event", revision):
                if change.action == "created":
                    yield change.resource

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
        await self._talk.wire.close()

    async def __aenter__(self) -> "Layer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _forget(box: Box) -> None:
    with suppress(NotFound):
        try:
            await box.remove(force=True)
        except LamellaError as error:
            error.add_note(f"while {box.name} was being removed")
            raise


def connect(host: str | None = None, *, project: str = "default") -> Layer:
    """The layer at *host* (``unix:///PATH`` or ``https://HOST:PORT``), else where ``LAMELLA_HOST`` and ``LAMELLA_HOME`` say.

    Nothing is sent yet: an absent daemon is found by the first question.

    :raise Invalid: when *host* is no place where a daemon can be.
    """
    return Layer(Wire(address.find(host)), project)
