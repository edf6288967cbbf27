"""Automatic templates of microVMs: found when a machine begins, made in the background for the next one when there was none."""

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.setup import GuestPhase, GuestSetup
from lamella.host.compute.microvm import arguments, disk, launching
from lamella.host.compute.microvm.host import HostParts
from lamella.host.compute.microvm.template import Shape, about
from lamella.host.compute.qemu import layers, memory_file, passing
from lamella.host.compute.qemu.memory_file import MEMORY
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.qemu.places import Places
from lamella.host.compute.qemu.process import end_process
from lamella.host.compute.qemu.shelf import Frozen, Shelf
from lamella.host.compute.qemu.size import group_limits
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import environment
from lamella.host.linux.spare_tap import spare_tap
from lamella.host.storage.driver import VolumeHandle
from lamella.model.errors import Corrupt, LamellaError, NotFound, Unavailable
from lamella.model.resource import now
from lamella.model.storage import VolumeForm

logger = logging.getLogger(__name__)

BOOT_DEADLINE = 90.0
# Bytes of disk that all of them may take, and seconds after which one that nobody began with is no longer held in memory.
BUDGET = 8 << 30
IDLE = 600.0
# The last uid of an instance's range, which nothing of the instance uses.
_LAST_ID = 65535
# How the control groups of QEMUs begin that only make a memory.
_OURS = ("image-", "blank-")


class Templates:
    """Those on the *shelf*. One is made at a time."""

    def __init__(self, home: Home, shelf: Shelf) -> None:
        self._home = home
        self._shelf = shelf
        self._turn = asyncio.Lock()
        self._making: dict[str, asyncio.Task[None]] = {}
        self._hopeless: set[str] = set()

    @contextlib.asynccontextmanager
    async def using(self, id: str | None) -> AsyncGenerator[Frozen | None]:
        """The template *id*, unless there is none that can be used."""
        async with contextlib.AsyncExitStack() as stack:
            found: Frozen | None = None
            if id is not None:
                try:
                    found = await stack.enter_async_context(self._shelf.using(id))
                except NotFound:
                    pass
                except Corrupt as error:
                    logger.warning("%s: %s", id, error)
                    await self._shelf.remove(id)
            yield found

    def wish(self, id: str, shape: Shape, host: HostParts, image: Path, id_base: int) -> None:
        """Have the template *id* made, for the next one. *image* is the root disk, *id_base* an id range, of which the last runs it."""
        if id not in self._making and id not in self._hopeless:
            task = asyncio.create_task(self._make(id, shape, host, image, id_base + _LAST_ID), name=id)
            self._making[id] = task
            task.add_done_callback(lambda _: self._making.pop(id, None))

    async def settle(self) -> None:
        """Wait until none is being made."""
        while self._making:
            await asyncio.wait(list(self._making.values()))

    async def collect(self, images: set[str]) -> int:
        """Remove templates of images that are not among *images*. Returns bytes freed."""
        freed = 0
        for id, size in await asyncio.to_thread(self._shelf.unused):
            made = self._shelf.about(id)
            if id.startswith(_OURS) and made is not None and made.about.get("image") not in {"", *images}:
                await self._shelf.remove(id)
                freed += size
        return freed

    async def _make_room(self) -> None:
        """Those that were used longest ago go when all take more than their share of the disk."""
        mine = [(id, size) for id, size in await asyncio.to_thread(self._shelf.unused) if id.startswith(_OURS)]
        over = sum(size for _, size in mine) - BUDGET
        for id, size in mine[:-1]:
            if over <= 0:
                return
            await self._shelf.remove(id)
            over -= size

    async def close(self) -> None:
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, id: str, shape: Shape, host: HostParts, image: Path, user: int) -> None:
        async with self._turn:
            try:
                await self._boot(id, shape, host, image, user)
                await self._make_room()
                self._shelf.let_go(IDLE)
            except (LamellaError, OSError) as error:
                # It would fail again in the same way; machines boot as they do without.
                self._hopeless.add(id)
                logger.warning("the template %s could not be made: %s", id, error)

    async def _boot(self, id: str, shape: Shape, host: HostParts, image: Path, user: int) -> None:
        size = shape.hardware.size
        places = Places(self._home, "template", id)
        group = Cgroups(ROOT, self._home.mark).group(id)
        await asyncio.to_thread(places.prepare)
        try:
            with contextlib.ExitStack() as stack:

                def own(fd: int) -> int:
                    stack.callback(os.close, fd)
                    return fd

                await asyncio.to_thread(group.create, group_limits(size.limits, size, host.accelerator.name))
                memory = own(memory_file.make("memory", size.memory))
                state = own(memory_file.make("state", 0))
                files = {MEMORY: memory}
                hardware, data = shape.hardware, None
                if shape.image:
                    data = places.state / "disk"
                    handle = await self._disk(data, shape.data)
                    files[arguments.ROOT] = own(os.open(image, os.O_RDONLY | os.O_CLOEXEC))
                    node = layers.cold_disk("data", handle, arguments.LAYERS, fd=arguments.DATA)
                    hardware = msgspec.structs.replace(hardware, data=node)
                if hardware.mac is not None:
                    tap, namespace = await asyncio.to_thread(spare_tap)
                    files[arguments.TAP] = own(tap)
                    own(namespace)
                pid = await launching.start(host, places, hardware, files, user=user, group=group, mark=self._home.mark)
                try:
                    await _freeze(places.run, state, shape)
                finally:
                    await asyncio.shield(end_process(pid))
                fd = None if data is None else own(os.open(data, os.O_RDONLY | os.O_CLOEXEC))
                await self._shelf.keep(id, memory, state, about(shape, host), disk=fd)
        finally:
            await asyncio.to_thread(group.remove)
            await asyncio.to_thread(places.remove)

    async def _disk(self, path: Path, size: int) -> VolumeHandle:
        """A writable disk as an instance gets it."""
        with path.open("xb") as file:
            file.truncate(size)
        handle = VolumeHandle(id="template", form=VolumeForm.BLOCK, path=path, size=size)
        await disk.format_once(handle, environment(self._home.mark), self._home.run)
        return handle


async def _freeze(run: Path, state: int, shape: Shape) -> None:
    """Bring the guest to where copies of it begin, and write down what the machine is then."""
    guest = await GuestClient.connect(run / "agent", timeout=BOOT_DEADLINE)
    try:
        if (await guest.prepare()).phase is not GuestPhase.WAITING:
            raise Unavailable("the guest does not wait to be told what it is")
        if shape.image:
            await guest.configure(GuestSetup(hostname="template", pids=shape.pids, time=now()))
    finally:
        await guest.close()
    monitor = await Monitor.connect(run / "monitor")
    try:
        # Everything that it wrote is on its disk then.
        await monitor.stop()
        await passing.ignore_shared(monitor)
        await passing.save(monitor, state)
    finally:
        await monitor.close()


def forget_unfinished(home: Home) -> None:
    """End what a daemon that died left of one that it was making."""
    groups = Cgroups(ROOT, home.mark)
    for id in groups.ids():
        if id.startswith(_OURS):
            groups.group(id).remove()
    for place in (home.state, home.run):
        shutil.rmtree(place / "template", ignore_errors=True)
