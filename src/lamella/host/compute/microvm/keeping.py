"""What is microVM's own of keeping memories (qemu/keeping.py): our agent is always inside, and makes everything hold still."""

import asyncio
import contextlib
import os
from datetime import UTC, datetime

import msgspec

from lamella.host.compute.driver import Machine
from lamella.host.compute.guest.setup import GuestIdentity, GuestPhase
from lamella.host.compute.microvm import arguments, launching
from lamella.host.compute.microvm.host import HostParts
from lamella.host.compute.microvm.identity import network_of, setup_of
from lamella.host.compute.microvm.session import BOOT_DEADLINE, Session
from lamella.host.compute.microvm.template import Shape, about, fits
from lamella.host.compute.qemu import keeping
from lamella.host.compute.qemu.keeping import LAST_ID, SUSPENDED, Receiver
from lamella.host.compute.qemu.places import Places
from lamella.host.compute.qemu.size import group_limits
from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.spare_tap import spare_tap
from lamella.model.stream import ExecSpec

__all__ = ["SUSPENDED", "KeepVerbs"]


class KeepVerbs(keeping.KeepVerbs[Session]):
    """:class:`KeepsMemory`. A driver says what a machine's hardware is like (:meth:`_shape_now`)."""

    def _ready(self) -> HostParts:
        raise NotImplementedError

    def _shape_now(self, machine: Machine) -> Shape:
        """What decides whether a memory of *machine* fits."""
        raise NotImplementedError

    async def _receiver(self, session: Session, machine: Machine) -> Receiver:
        host, shape = self._ready(), self._shape_now(machine)
        hardware = msgspec.structs.replace(shape.hardware, empty_root=shape.root, incoming=True)
        user, mark = machine.id_base + LAST_ID, self._home.mark

        async def start(places: Places, group: Cgroup, files: dict[int, int]) -> int:
            with contextlib.ExitStack() as stack:
                if hardware.mac is not None:
                    for fd in (taps := await asyncio.to_thread(spare_tap)):
                        stack.callback(os.close, fd)
                    files = files | {arguments.TAP: taps[0]}
                return await launching.start(host, places, hardware, files, user=user, group=group, mark=mark)

        return Receiver(
            memory=hardware.size.memory,
            limits=group_limits(hardware.size.limits, hardware.size, host.accelerator.name),
            about=about(shape, host),
            start=start,
        )

    def _about(self, machine: Machine, kept: dict[str, str]) -> dict[str, str]:
        return about(self._shape_now(machine), self._ready())

    def _same(self, one: Machine, other: Machine) -> bool:
        return fits(self._shape_now(one), self._shape_now(other))

    def _live(self, session: Session) -> bool:
        # Under TCG a store may be missed that was made while memory is sent (seen with full machines, 1 in 10).
        return session.process.accelerator == "kvm"

    async def _hold(self, session: Session, *, goes_on: bool) -> bool:
        await (await session.guest(timeout=5)).hold(None)
        return True

    async def _release(self, session: Session) -> None:
        await (await session.guest(timeout=5)).release()

    async def _renew(self, session: Session, machine: Machine, *, again: bool) -> datetime | None:
        guest = await session.guest(BOOT_DEADLINE)
        if again:
            await guest.hold(None)
        await guest.renew(_identity(machine))
        state = await guest.state()
        if state.phase is GuestPhase.READY:
            return None
        return datetime.now(UTC) if machine.fresh else state.started_at

    async def _told(self, session: Session, machine: Machine) -> None:
        await (await session.guest(BOOT_DEADLINE)).become(setup_of(machine))

    async def _rehearse(self, session: Session) -> None:
        # The agent itself is a program that every image can run; told nothing, it says so and ends.
        guest = await session.guest(timeout=5)
        stream = await guest.exec(ExecSpec(command=["/proc/1/exe", "--rehearse"]))
        try:
            while await stream.receive() is not None:
                pass
        finally:
            await stream.close()

    def _woken(self, session: Session) -> None:
        session.met_again()


def _identity(machine: Machine) -> GuestIdentity:
    now = datetime.now(UTC)
    if not machine.fresh:
        return GuestIdentity(entropy=os.urandom(64), time=now)
    return GuestIdentity(
        entropy=os.urandom(64),
        hostname=machine.hostname,
        network=network_of(machine),
        drop_network=machine.nic is None,
        nameservers=machine.nameservers,
        pids=machine.limits.pids,
        time=now,
    )
