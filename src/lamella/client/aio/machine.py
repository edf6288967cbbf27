"""What an instance with virtual hardware has beside its verbs: a reset button, a screen, hands, devices to plug."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from lamella.client import calls, keys, routes, wish
from lamella.client.aio.streams import Stream
from lamella.client.aio.talk import Talk
from lamella.client.call import Call
from lamella.client.machine import usb
from lamella.model.board import DesktopTicket, Input, Pointer
from lamella.model.errors import StaleRevision
from lamella.model.instance import Instance

TRIES = 5  # when somebody else changes the instance between looking and asking


class Machine:
    """The part of :class:`~lamella.client.aio.box.Box` that is about hardware.

    Every method raises ``Unsupported`` at a level that has no such thing.
    """

    def __init__(self, talk: Talk, instance: Instance) -> None:
        self._talk = talk
        self.instance = instance

    @property
    def id(self) -> str:
        return self.instance.id

    async def reset(self) -> None:
        """Press the reset button: the guest is asked nothing."""
        await self._talk.ask(calls.reset(self._project, self.id))

    async def screenshot(self) -> bytes:
        """What the screen shows, as PNG."""
        return await self._talk.ask(calls.screenshot(self._project, self.id))

    async def input(self, asked: Input) -> None:
        """Type, press and click, in this order."""
        await self._talk.ask(calls.send_input(self._project, self.id, asked))

    async def type(self, text: str) -> None:
        """Type *text* on a US keyboard; a line end is the Enter key."""
        await self.input(Input(text=text))

    async def press(self, *chords: str) -> None:
        """Press keys together, one chord after the other: ``await box.press("ctrl-alt-delete", "enter")``."""
        await self.input(Input(keys=[keys.chord(chord) for chord in chords]))

    async def click(self, x: float, y: float, *, button: str = "left") -> None:
        """Click at (*x*, *y*), each 0 to 1 of the screen. *button* is ``left``, ``middle`` or ``right``."""
        await self.input(Input(pointer=[Pointer(x=x, y=y, buttons=[button])]))

    async def desktop(self, kind: calls.DesktopKind = "vnc") -> DesktopTicket:
        """A ticket for one viewer, whose bytes :meth:`screen` carries. A ticket that was not used is void then."""
        return await self._talk.ask(calls.desktop(self._project, self.id, kind))

    @asynccontextmanager
    async def screen(self, kind: calls.DesktopKind = "vnc") -> AsyncGenerator[Stream]:
        """A viewer's connection: its bytes are written, the screen's arrive as ``Stdout`` frames."""
        channel = await self._talk.wire.channel(routes.screen_stream(self._project, self.id, kind=kind))
        async with Stream(channel) as stream:
            yield stream

    @asynccontextmanager
    async def console(self) -> AsyncGenerator[Stream]:
        """The serial console: what is said there from now on, and what is typed."""
        channel = await self._talk.wire.channel(routes.attach_stream(self._project, self.id))
        async with Stream(channel) as stream:
            yield stream

    async def dump(self, *, crash: bool = False) -> AsyncIterator[bytes]:
        """The guest's memory as an ELF core, piece by piece; with *crash* as it was when its kernel crashed.

        :raise NotFound: when *crash* is asked for and it never did.
        """
        async with self._talk.wire.stream(routes.dump(self._project, self.id, crash=crash)) as pieces:
            async for data in pieces:
                yield data

    async def attach_disk(self, size: wish.Size, *, name: str | None = None) -> str:
        """Plug in a new, empty disk of *size*; its name."""
        return await self._attach("disk", {"size": wish.size(size, field="size")}, name)

    async def attach_cdrom(self, image: str, *, name: str | None = None) -> str:
        """Plug in a drive with a CD's image in it; its name."""
        return await self._attach("cdrom", {"image": image}, name)

    async def attach_nic(self, network: str = "default", *, name: str | None = None) -> str:
        """Plug in a NIC on *network*; its name."""
        return await self._attach("nic", {"network": network}, name)

    async def attach_usb(self, device: str, *, name: str | None = None) -> str:
        """Plug in a USB device of the host, ``VENDOR:PRODUCT`` as lsusb prints it; its name."""
        return await self._attach("usb", {"device": usb(device)}, name)

    async def detach(self, name: str, *, force: bool = False) -> None:
        """Take a device out.

        :raise Conflict: when it is a disk and *force* is not set: its content goes with it.
        """
        for left in reversed(range(TRIES)):
            await self._look()
            if await self._patched(calls.unplug(self.instance, name, force=force), last=not left):
                return

    async def _attach(self, kind: str, description: dict[str, object], name: str | None) -> str:
        made = ""
        for left in reversed(range(TRIES)):
            await self._look()
            made, call = calls.plug(self.instance, kind, description, name)
            if await self._patched(call, last=not left):
                break
        return made

    async def _patched(self, call: Call[Instance], *, last: bool) -> bool:
        """Whether it was done: when somebody else changed the instance since, it is tried again, unless this was the *last* try."""
        try:
            self.instance = await self._talk.ask(call)
        except StaleRevision:
            if last:
                raise
            return False
        return True

    async def _look(self) -> None:
        self.instance = await self._talk.ask(calls.get(self._project, "instance", self.id))

    @property
    def _project(self) -> str:
        return self._talk.project
