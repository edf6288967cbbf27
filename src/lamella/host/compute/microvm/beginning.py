"""How a microVM begins: it boots, or goes on from a template or a memory that was kept."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Changed, Home, Machine
from lamella.host.compute.microvm import arguments, disk, launching, size, volumes
from lamella.host.compute.microvm.arguments import Hardware
from lamella.host.compute.microvm.block_image import BlockImages
from lamella.host.compute.microvm.host import HostParts
from lamella.host.compute.microvm.keeping import KeepVerbs
from lamella.host.compute.microvm.session import Session
from lamella.host.compute.microvm.template import Shape, id_of, shape_of
from lamella.host.compute.microvm.templates import Templates
from lamella.host.compute.qemu import memory_file, pages, passing, served
from lamella.host.compute.qemu.memory_file import MEMORY, STATE, Use
from lamella.host.compute.qemu.places import Places, ProcessRecord
from lamella.host.compute.qemu.shelf import Frozen, Shelf
from lamella.host.compute.qemu.size import Size, group_limits
from lamella.host.linux.processes import environment, start_time
from lamella.model.errors import Internal, LamellaError, Unavailable
from lamella.model.host import Copies

logger = logging.getLogger(__name__)

OpenTap = Callable[[str], Awaitable[int]]


class BeginVerbs(KeepVerbs):
    """What a driver of microVMs needs to make one."""

    def __init__(self, home: Home, changed: Changed) -> None:
        super().__init__(home, changed)
        self._open_tap: OpenTap | None = None
        self._environment = environment(home.mark)
        self._keepers, self._releasing = {}, {}
        self._shelf = Shelf(home.state / "memory" / self.name)
        self.templates = Templates(home, self._shelf)
        self._copies = Copies.SAME_PROJECT
        self.block_images = BlockImages(home.state / "images-block", self._environment)
        self._host: HostParts | None = None

    def use_taps(self, open_tap: OpenTap) -> None:
        """*open_tap* is given a port's id and returns the open descriptor of its TAP, which is ours to close."""
        self._open_tap = open_tap

    def use_copies(self, policy: Copies) -> None:
        """Who may begin as a copy of a template that nobody named, from now on."""
        self._copies = policy

    def _ready(self) -> HostParts:
        if self._host is None:
            raise Unavailable("microVMs are not available on this host", hint="lamella doctor says why")
        return self._host

    async def _go_on_from(
        self, host: HostParts, places: Places, machine: Machine, wanted: Size, image: Path, begins: Frozen
    ) -> None:
        """From a memory that was kept; it waits to be told to."""
        hardware = _hardware(host, machine, wanted)
        session = await self._boot(host, places, machine, hardware, image, begins, machine.memory, asleep=True)
        if machine.resting and machine.fresh:
            await self._rest(session)

    async def _begin(self, host: HostParts, places: Places, machine: Machine, wanted: Size, image: Path) -> Session:
        """As a copy of a template where there is one and it may; else it boots, and a template is made for the next one."""
        hardware = _hardware(host, machine, wanted)
        copied = not machine.cold and machine.huge_pages is None and self._copies is not Copies.OFF
        fresh = copied and await asyncio.to_thread(disk.is_fresh, machine.volume)
        shape = self._shape(machine, hardware, image, fresh=fresh)
        id = id_of(shape, host)
        async with self.templates.using(id if copied else None) as template:
            try:
                if template is not None:
                    if shape.image:
                        await asyncio.to_thread(disk.copy, template, machine.volume)
                    else:
                        await disk.format_once(machine.volume, self._environment, self._home.run)
                    return await self._boot(host, places, machine, hardware, image, template, id)
            except Unavailable as error:
                logger.warning("%s did not begin as a copy of %s: %s", machine.id, id, error)
                await self._shelf.remove(id)
                await self._clear(machine.id)
                await asyncio.to_thread(places.prepare)
        await disk.format_once(machine.volume, self._environment, self._home.run)
        session = await self._boot(host, places, machine, hardware, image)
        if copied:
            self.templates.wish(id, shape, host, image, machine.id_base)
        return session

    def _shape_now(self, machine: Machine) -> Shape:
        image = self.block_images.path(machine.rootfs.digest)
        return self._shape(machine, _hardware(self._ready(), machine, size.size_of(machine.limits)), image, fresh=False)

    def _shape(self, machine: Machine, hardware: Hardware, image: Path, *, fresh: bool) -> Shape:
        return shape_of(
            hardware,
            root=image.stat().st_size,
            data=machine.volume.size,
            volumes={volume.device: volume.size for volume in machine.volumes},
            owner="" if self._copies is Copies.ALL else machine.project,
            image=machine.rootfs.digest if fresh else "",
            pids=machine.limits.pids,
        )

    async def _boot(
        self,
        host: HostParts,
        places: Places,
        machine: Machine,
        hardware: Hardware,
        image: Path,
        begins: Frozen | None = None,
        began: str = "",
        *,
        asleep: bool = False,
    ) -> Session:
        """Start QEMU, inside its group before it allocates anything, and write it down; with *begins* it goes on from there, or waits
        to (*asleep*)."""
        group = self._group(machine.id)
        limits = group_limits(machine.limits, hardware.size, host.accelerator.name)
        await asyncio.to_thread(group.create, limits)
        await asyncio.to_thread(pages.check, hardware.size.memory, machine.huge_pages)
        if begins is not None:
            hardware = msgspec.structs.replace(hardware, file=Use.COPIED, incoming=True)
        with contextlib.ExitStack() as stack:

            def own(fd: int) -> int:
                stack.callback(os.close, fd)
                return fd

            files = {arguments.ROOT: own(os.open(image, os.O_RDONLY | os.O_CLOEXEC))}
            if begins is not None:
                files |= {MEMORY: begins.memory, STATE: own(memory_file.again(begins.state))}
            if machine.nic is not None:
                if self._open_tap is None:
                    raise Internal("nobody said where TAPs come from", hint="call use_taps before create")
                files[arguments.TAP] = own(await self._open_tap(machine.nic.port))
            pid = await launching.start(
                host,
                places,
                hardware,
                files,
                user=machine.id_base,
                group=group,
                mark=self._home.mark,
                shown=served.sockets(machine),
            )
        record = ProcessRecord(
            pid=pid,
            started=start_time(pid) or 0,
            boot=host.accelerator.boot,
            accelerator=host.accelerator.name,
            accelerator_reason=host.accelerator.reason,
            size=hardware.size,
            limits=machine.limits,
            began=began,
        )
        session: Session | None = None
        try:
            # Whoever looks meanwhile must not adopt it as the work of another daemon.
            async with self._adoption(machine.id):
                await asyncio.to_thread(places.write, record)
                session = await self._new_session(places, record)
            monitor = await session.monitor()
            if begins is not None:
                await passing.load(monitor)
                if not asleep:
                    await session.resume()
        except LamellaError as error:
            words = session.last_words() if session is not None else ""
            raise Unavailable(f"QEMU did not start: {words or error.message}") from error
        if asleep:
            await session.write(asleep=True)
        return session


def _hardware(host: HostParts, machine: Machine, size: Size) -> Hardware:
    data, others = volumes.disks(machine)
    return Hardware(
        name=machine.id,
        size=size,
        accelerator=host.accelerator.name,
        tsc_khz=host.accelerator.tsc_khz,
        mac=machine.nic.mac if machine.nic else None,
        data=data,
        volumes=others,
        huge_pages=machine.huge_pages,
        gives_memory=machine.memory_guarantee is not None and machine.huge_pages is None,
    )
