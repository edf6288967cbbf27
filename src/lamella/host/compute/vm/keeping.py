"""What is a full machine's own of keeping memories (qemu/keeping.py): whatever runs inside, or nothing that answers.

A machine that shall go on as another one was held by our agent when it was kept. One that goes on as itself needs nobody inside; our agent,
where it answers, gives it new randomness and the time.
"""

import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import ClassVar

import msgspec

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.guest.setup import GuestIdentity, GuestNetwork
from lamella.host.compute.qemu import keeping, memory_file, passing
from lamella.host.compute.qemu.keeping import HELD, LAST_ID, Receiver
from lamella.host.compute.qemu.memory_file import MEMORY, STATE, Use
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.qemu.places import Places
from lamella.host.compute.qemu.shelf import Frozen
from lamella.host.compute.vm import arguments, hotplug, launching, layout, receiving, seed
from lamella.host.compute.vm.host import HostParts
from lamella.host.compute.vm.layout import Layout
from lamella.host.compute.vm.session import Session
from lamella.host.linux.cgroup import Cgroup
from lamella.model.errors import Conflict, Corrupt, LamellaError, Unsupported

# How long our agent may take to answer in a machine that goes on as another one, and in one that only goes on.
PATIENCE = 60.0
GLANCE = 5.0

_LAYOUT, _AGENT, _STARTED, _MAC = "layout", "agent", "started", "mac"
_HOW = (
    "have Lamella's agent run in it (its seed drive starts it, lamella image build --disk brings it), and keep it again"
)


class KeepVerbs(keeping.KeepVerbs[Session]):
    """:class:`KeepsMemory`. ``why_no_memory`` is why no machine of this driver can be kept, or nothing."""

    why_no_memory: ClassVar[str] = ""

    def _ready(self) -> HostParts:
        raise NotImplementedError

    async def _receiver(self, session: Session, machine: Machine) -> Receiver:
        if self.why_no_memory:
            raise Unsupported(f"the memory of this machine cannot be kept: {self.why_no_memory}")
        if session.process.started_at is None:
            raise Conflict(f"the machine {machine.id} has not been started", hint="start it first")
        host = self._ready()
        laid = await layout.look(await session.monitor(), session.process, machine)
        plan = receiving.plan(host, machine, laid)
        origin, user, mark = session.places, machine.id_base + LAST_ID, self._home.mark

        async def start(places: Places, group: Cgroup, files: dict[int, int]) -> int:
            return await receiving.start(host, plan, places, machine, origin, files, user=user, group=group, mark=mark)

        async def plug(monitor: Monitor) -> None:
            await receiving.plug(monitor, machine, laid)

        about = _about(host, machine, laid, laid.kinds) | {
            _LAYOUT: msgspec.json.encode(laid).decode(),
            _AGENT: "yes" if session.inside.agents.ours else "",
            _STARTED: session.process.started_at.isoformat(),
            _MAC: laid.mac,
        }
        return Receiver(memory=plan.size.memory, limits=plan.group, about=about, start=start, plug=plug)

    def _about(self, machine: Machine, kept: dict[str, str]) -> dict[str, str]:
        laid = layout_of(kept)
        if machine.fresh and (why := layout.why_not_another(machine)):
            raise Unsupported(f"another machine cannot begin with this memory: {why}", hint="begin it without")
        if machine.fresh and not kept.get(HELD):
            raise Unsupported(
                "another machine cannot begin with this memory: nobody inside could tell it that it is another one",
                hint=_HOW,
            )
        if why := layout.fits(laid, machine):
            raise Unsupported(f"this memory is of {kept.get('hardware')}: {why}", hint="begin anew without it")
        return _about(self._ready(), machine, laid, layout.wanted(machine))

    def _same(self, one: Machine, other: Machine) -> bool:
        # What boots is told by its seed drive, which is made already.
        told = bool(one.memory) or not one.seed.enabled or seed.seed_files(one) == seed.seed_files(other)
        return told and (one.limits, one.board, one.devices, one.nic) == (
            other.limits,
            other.board,
            other.devices,
            other.nic,
        )

    def _live(self, session: Session) -> bool:
        # What an emulated processor writes while its memory is sent may be missed: the store can come after the look at whether its page is
        # clean. Seen: of those that were suspended on a busy host, one in ten hung when it went on.
        return session.process.accelerator != "tcg"

    async def _hold(self, session: Session, *, goes_on: bool) -> bool:
        # One that is suspended goes on as itself, maybe with nobody to wake it.
        if not goes_on or not session.inside.agents.ours:
            return False
        try:
            await (await session.inside.meet_ours(GLANCE)).hold(None)
        except Unsupported:
            return False
        return True

    async def _release(self, session: Session) -> None:
        with contextlib.suppress(Unsupported):
            await (await session.inside.meet_ours(PATIENCE if session.inside.met_ours else GLANCE)).release()

    async def _renew(self, session: Session, machine: Machine, *, again: bool) -> datetime:
        made = self._shelf.about(machine.memory)
        kept = {} if made is None else made.about
        now = datetime.now(UTC)
        if machine.fresh or kept.get(HELD):
            guest = await session.inside.meet_ours(PATIENCE)
            if again:
                await guest.hold(None)
            await guest.renew(_identity(machine, kept.get(_MAC, ""), now))
        elif kept.get(_AGENT):
            with contextlib.suppress(LamellaError, TimeoutError):
                guest = await session.inside.meet_ours(GLANCE)
                await guest.reseed(os.urandom(64))
                await guest.set_time()
        return now if machine.fresh or not kept.get(_STARTED) else datetime.fromisoformat(kept[_STARTED])

    def _woken(self, session: Session) -> None:
        session.inside.started = session.process.started_at


def layout_of(kept: dict[str, str]) -> Layout:
    """:raise Corrupt: when it is not written down."""
    try:
        return msgspec.json.decode(kept.get(_LAYOUT, ""), type=Layout)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"what is written down of this memory makes no sense: {error}") from error


def beginning(host: HostParts, machine: Machine, begins: Frozen) -> launching.Plan:
    """The plan of *machine*, which goes on from *begins*."""
    laid = layout_of(begins.made.about)
    return launching.with_memory(launching.plan(host, machine, laid), Use.COPIED)


@contextlib.asynccontextmanager
async def files_of(begins: Frozen | None) -> AsyncGenerator[dict[int, int]]:
    """The descriptors of a QEMU that goes on from *begins*."""
    if begins is None:
        yield {}
        return
    state = memory_file.again(begins.state)
    try:
        yield {MEMORY: begins.memory, STATE: state}
    finally:
        os.close(state)


async def load(
    monitor: Monitor,
    machine: Machine,
    begins: Frozen,
    open_tap: Callable[[str], Awaitable[int]],
    reaches: Callable[[MountedVolume], bool],
) -> None:
    """Give it its devices where they were, and have it take over the state.

    :raise Unavailable: when QEMU does not take it.
    """
    await hotplug.put(monitor, machine, layout_of(begins.made.about).steps, open_tap, reaches=reaches)
    await passing.load(monitor)


def _about(host: HostParts, machine: Machine, laid: Layout, kinds: list[tuple[str, layout.Part]]) -> dict[str, str]:
    made = launching.plan(host, machine, laid)
    vm = msgspec.structs.replace(
        made.vm,
        name="kept",
        uuid="kept",
        root=None if laid.root is None or machine.disk is None else layout.spare_root(laid.root),
        mac=None if made.vm.mac is None else "kept",
        screens=[],
    )
    digest = layout.digest([*arguments.arguments(vm), *map(str, kinds)])
    names = ", ".join(name for name, _ in kinds) or "none"
    return {
        "made of": f"QEMU {host.version}, {vm.board_type}, {host.accelerator.name}",
        "hardware": f"{laid.size.vcpus} processors, {laid.size.memory >> 20} MiB, devices {names}, board {digest}",
        "image": "",
        "owner": machine.project,
    }


def _identity(machine: Machine, former_mac: str, now: datetime) -> GuestIdentity:
    if not machine.fresh:
        return GuestIdentity(entropy=os.urandom(64), time=now)
    nic = machine.nic
    network = None
    if nic is not None:
        network = GuestNetwork(
            mac=nic.mac,
            address=nic.address,
            gateway=nic.gateway,
            mtu=nic.mtu,
            interface=nic.interface,
            address6=nic.address6,
            gateway6=nic.gateway6,
        )
    return GuestIdentity(
        entropy=os.urandom(64),
        hostname=machine.hostname,
        network=network,
        former_mac=former_mac,
        nameservers=machine.nameservers,
        time=now,
    )
