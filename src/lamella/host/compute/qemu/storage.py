"""What every driver of machines under QEMU does to their disks while they run: new layers, a storage process that came again, growth."""

import asyncio
import contextlib
from typing import ClassVar, TypeVar

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.qemu import disks, served
from lamella.host.compute.qemu.driver import QemuDriver
from lamella.host.compute.qemu.process import QemuProcess
from lamella.host.storage.driver import Layer
from lamella.model.errors import LamellaError, NotFound

S = TypeVar("S", bound=QemuProcess)


class DiskVerbs(QemuDriver[S]):
    """:class:`OpensDisks`, and two verbs for the storage wing. ``root_device`` is QEMU's id of the first disk's device."""

    root_device: ClassVar[str] = "root"

    async def switch(self, id: str, layers: dict[str, Layer]) -> None:
        """See ``OpensDisks``. What is written down of the machine says afterwards what its disks are made of.

        :raise Unsupported: when it has no such disk of its own. :raise Unavailable: when QEMU does not answer or refuses.
        """
        async with self._lock(id):
            session = await self._running(id)
            machine = self._known(session)
            own = disks.own_disks(machine, self.root_device)
            await disks.switch(await session.monitor(), own, layers)
            await self._note(session, disks.switched(machine, layers))

    async def heal(self, id: str, volumes: list[MountedVolume] | None = None) -> None:
        """The storage process is there again, or the pool has room: take the files of *volumes* (all that the machine has, when nothing is
        said) anew where they are others than those that are open, and let it go on if it stands still because of that. What failed is done
        again; nothing is told to the guest. What is served over a socket is connected again by QEMU itself.

        :raise NotFound: when a volume's file is not there. :raise Unavailable: when QEMU does not answer or refuses.
        """
        async with self._lock(id):
            session = await self._running(id)
            monitor = await session.monitor()
            tops, drivers = await disks.top_nodes(monitor), await disks.drivers(monitor)
            for volume in self._known(session).volumes if volumes is None else volumes:
                qdev = f"dev-{volume.device}"
                if qdev in tops and drivers.get(tops[qdev]) != served.DRIVER:
                    await disks.replace_file(
                        monitor,
                        session.process.pid,
                        qdev,
                        volume.device,
                        volume.id,
                        volume.path,
                        read_only=volume.read_only,
                    )
            if await disks.failed(monitor):
                await session.resume()

    async def resized(self, id: str, volume_id: str, size: int) -> None:
        """One of its volumes or of its own disks has *size* bytes now: have the guest see that.

        :raise Unsupported: when it has no such disk.
        """
        async with self._lock(id):
            session = await self._running(id)
            machine = self._known(session)
            monitor = await session.monitor()
            own = disks.own_disks(machine, self.root_device)
            volume = next((one for one in machine.volumes if one.id == volume_id), None)
            if volume is not None:
                qdev = f"dev-{volume.device}"
                top = (await disks.top_nodes(monitor)).get(qdev)
                if top is not None:
                    if (await disks.drivers(monitor)).get(top) == served.DRIVER:
                        await disks.connect_anew(monitor, qdev, volume, size)
                    await disks.resize(monitor, qdev, size)
                with contextlib.suppress(LamellaError):
                    await self._grown(session, volume)
            else:
                await disks.resize(monitor, own[volume_id].qdev if volume_id in own else volume_id, size)

    async def _grown(self, session: S, volume: MountedVolume) -> None:
        """A level whose guest can be asked has it grow the file system."""

    async def _note(self, session: S, machine: Machine) -> None:
        await asyncio.to_thread(session.places.write, machine)

    def _known(self, session: S) -> Machine:
        """:raise NotFound: when nothing is written down of it."""
        machine = session.places.machine()
        if machine is None:
            raise NotFound(f"nothing is written down of {session.places.id}", hint="start it again")
        return machine
