"""How large a machine is, how far it can grow while it runs, and growing and shrinking it.

vCPUs are plugged and unplugged (QEMU's ``docs/system/cpu-hotplug.rst``). Memory beyond that of the start is virtio-mem (Linux 5.8 and
later have its driver); below it, and where a guest does not give back what it was given, the balloon takes it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from lamella.host.compute.driver import Limits
from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.compute.qemu.size import MIB, Size, group_limits
from lamella.model import sizes
from lamella.model.errors import Conflict, Unsupported
from lamella.model.instance import Isolation
from lamella.model.quantity import format_cpu, format_size

DEFAULT_MEMORY = sizes.DEFAULT_MEMORY[Isolation.VM]
SMALLEST_MEMORY = 32 * MIB
MOST_VCPUS = 128

# How far a machine can grow without a restart. A vCPU that is not there costs a guest some 200 KiB of tables; memory that is not
# there costs nothing, and 1/64 of it once it comes, out of what the guest has: four times keeps that under 5 %.
_ROOM_FOR_VCPUS = 4
_GROWTH_OF_VCPUS = 2
_GROWTH_OF_MEMORY = 4
# virtio-mem gives and takes blocks of this size (transparent huge pages).
_BLOCK = 2 * MIB
# What a balloon may miss of what it was asked for: a guest that has little left stops before the end.
_TOLERANCE = 4 * MIB

# For a Linux guest: what was plugged in is there, and used when it is online. Debian's kernels leave that to somebody inside.
_ONLINE = """
for policy in /sys/devices/system/memory/auto_online_blocks; do
  [ ! -e $policy ] || [ "$(cat $policy)" != offline ] || echo online_movable > $policy
done
for state in /sys/devices/system/memory/memory*/state; do
  [ ! -e $state ] || [ "$(cat $state)" != offline ] || echo online_movable > $state
done
for online in /sys/devices/system/cpu/cpu*/online; do
  [ -e $online ] || continue
  number=${online%/online} number=${number##*cpu}
  [ "$number" -lt VCPUS ] && wanted=1 || wanted=0
  [ "$(cat $online)" = $wanted ] || echo $wanted > $online
done
"""

PATIENCE = 30.0
_GLANCE = 0.2


class Current(msgspec.Struct, kw_only=True, frozen=True):
    """A machine that runs: ``memory`` it started with, ``room`` it can be given beyond (bytes), ``grown`` of that it has, and
    ``ballooned`` bytes of the first were taken back."""

    vcpus: int
    most_vcpus: int
    memory: int
    room: int
    grown: int = 0
    ballooned: int = 0

    @property
    def limits(self) -> Limits:
        """The largest that it can be while it runs: for ``Observed.launched``."""
        return Limits(cpu=self.most_vcpus * 1000, memory=self.memory + self.room)


class Change(msgspec.Struct, kw_only=True, frozen=True):
    """What to do: ``vcpus`` in all, ``grown`` bytes beyond the start, ``ballooned`` of the start taken back; ``group`` is what its
    control group is given (before growing, after shrinking)."""

    vcpus: int
    grown: int
    ballooned: int
    group: Limits


def size_of(limits: Limits) -> Size:
    """The size that a machine with these limits starts with.

    :raise Unsupported: when nothing can live in it, or QEMU cannot offer it.
    """
    memory = DEFAULT_MEMORY if limits.memory is None else limits.memory // _BLOCK * _BLOCK
    if memory < SMALLEST_MEMORY:
        raise Unsupported(
            f"a machine of its own cannot live in {format_size(limits.memory or 0)} of memory",
            hint=f"give it {format_size(SMALLEST_MEMORY)} or more, or run it as a container",
            field="memory",
        )
    vcpus = _vcpus(limits.cpu) or 1
    if vcpus > MOST_VCPUS:
        raise Unsupported(
            f"a machine has at most {MOST_VCPUS} virtual processors, not {vcpus}", hint="ask for less cpu", field="cpu"
        )
    return Size(vcpus=vcpus, memory=memory)


def largest_of(size: Size, host_memory: int, *, plugs_vcpus: bool = True) -> Size:
    """What a machine that starts with *size* can grow to: four vCPUs or twice as many, where they can be plugged in at all, and four
    times the memory, which may not be more than the host's (bytes)."""
    vcpus = min(MOST_VCPUS, max(_ROOM_FOR_VCPUS, _GROWTH_OF_VCPUS * size.vcpus))
    memory = min(host_memory, _GROWTH_OF_MEMORY * size.memory) // _BLOCK * _BLOCK
    return Size(vcpus=max(vcpus, size.vcpus) if plugs_vcpus else size.vcpus, memory=max(memory, size.memory))


def cold_arguments(size: Size, largest: Size) -> list[str]:
    """Processors and memory of a machine that can grow from *size* to *largest*."""
    room = largest.memory - size.memory
    processors = f"cpus={size.vcpus},maxcpus={largest.vcpus},sockets=1,cores={largest.vcpus},threads=1"
    if not room:
        return ["-smp", processors, "-m", f"size={size.memory // MIB}M"]
    return [
        *("-smp", processors, "-m", f"size={size.memory // MIB}M,maxmem={largest.memory // MIB}M"),
        *("-object", f"memory-backend-ram,id=growth-memory,size={room // MIB}M"),
        *("-device", "virtio-mem-pci,id=growth,memdev=growth-memory,requested-size=0,bus=pcie.0,addr=0x9"),
    ]


def group_of(limits: Limits, size: Size, accelerator: str) -> Limits:
    """What the group around a machine of *size* is given: QEMU's own memory and a thread for each vCPU that may come are in it."""
    return group_limits(limits, size, accelerator)


def online(vcpus: int) -> str:
    """A shell script for a Linux guest, which has it use all its memory and *vcpus* of its processors."""
    return _ONLINE.replace("VCPUS", str(vcpus))


def change(current: Current, wanted: Limits, accelerator: str) -> Change:
    """How to give *wanted* to a machine that runs. What is not limited stays as it is.

    An emulated processor is never unplugged: QEMU 7.2 corrupts its memory when it plugs one in again (seen; TCG counts its threads and
    never takes one back). The guest is asked to leave it alone, and the group holds the machine to the time that was asked for.

    :raise Unsupported: when it cannot grow so far without a restart, or nothing could live in what is left.
    """
    vcpus = _vcpus(wanted.cpu) or current.vcpus
    if vcpus > current.most_vcpus:
        raise Unsupported(
            f"this machine started with places for {current.most_vcpus} virtual processors and cannot use "
            f"{format_cpu(wanted.cpu or 0)} cores while it runs",
            hint="restart it to start with the new size",
            field="cpu",
        )
    if accelerator == "tcg":
        vcpus = max(vcpus, current.vcpus)
    most = current.memory + current.room
    memory = current.memory + current.grown - current.ballooned if wanted.memory is None else wanted.memory
    memory = memory // _BLOCK * _BLOCK
    if memory > most:
        raise Unsupported(
            f"this machine started with {format_size(current.memory)} of memory and cannot grow beyond "
            f"{format_size(most)} while it runs, as {format_size(memory)} would",
            hint="restart it to start with the new size",
            field="memory",
        )
    if wanted.memory is not None:
        size_of(Limits(memory=memory))
    return Change(
        vcpus=vcpus,
        grown=max(0, memory - current.memory),
        ballooned=max(0, current.memory - memory),
        group=group_of(wanted, Size(vcpus=current.most_vcpus, memory=memory), accelerator),
    )


def reclaimed(change: Change, current: Current, wanted: Limits, accelerator: str) -> Change:
    """*change* for a machine from which memory is taken that it does not need: that is given back when it needs it, not now, and its
    group keeps the room for it."""
    memory = (
        current.memory + current.grown if wanted.memory is None else current.memory + change.grown - change.ballooned
    )
    group = group_of(wanted, Size(vcpus=current.most_vcpus, memory=memory), accelerator)
    return msgspec.structs.replace(change, ballooned=max(change.ballooned, current.ballooned), group=group)


class _Cpu(msgspec.Struct):
    type: str
    props: dict[str, int]
    path: str | None = msgspec.field(name="qom-path", default=None)

    @property
    def place(self) -> tuple[int, ...]:
        return tuple(self.props.get(f"{part}-id", 0) for part in ("node", "socket", "die", "core", "thread"))


class _Summary(msgspec.Struct):
    base: int = msgspec.field(name="base-memory")
    plugged: int = msgspec.field(name="plugged-memory", default=0)


async def look(monitor: Monitor) -> Current:
    """How large the machine is now.

    :raise Unavailable: when QEMU is gone.
    """
    cpus = await _cpus(monitor)
    summary = await monitor.ask(_Summary, "query-memory-size-summary")
    room = 0
    with contextlib.suppress(Refused):  # it was started with no room to grow
        room = await monitor.ask(int, "qom-get", {"path": "/objects/growth-memory", "property": "size"})
    return Current(
        vcpus=sum(1 for cpu in cpus if cpu.path is not None),
        most_vcpus=len(cpus),
        memory=summary.base,
        room=room,
        grown=await _grown(monitor) if room else 0,
        ballooned=await _ballooned(monitor, summary.base),
    )


async def resize(monitor: Monitor, change: Change, *, patience: float = PATIENCE) -> None:
    """Carry out *change*; returns when the guest has taken or given it. Done already is fine.

    A guest that took no memory keeps what it had; one that gives back only part of it stays asked for the rest.

    :raise Conflict: when the guest does not follow within *patience* seconds, or is paused and cannot.
    """
    current = await look(monitor)
    same = (current.vcpus, current.grown, current.ballooned) == (change.vcpus, change.grown, change.ballooned)
    if same:
        return
    if await monitor.status() != "running":
        raise Conflict("the guest does not run and cannot change its size", hint="resume it and try again")
    await _resize_cpus(monitor, change.vcpus, patience)
    await _resize_memory(monitor, current, change, patience)


# --- processors


async def _cpus(monitor: Monitor) -> list[_Cpu]:
    cpus = await monitor.ask(list[_Cpu], "query-hotpluggable-cpus")
    return sorted(cpus, key=lambda cpu: cpu.place)


async def _resize_cpus(monitor: Monitor, vcpus: int, patience: float) -> None:
    cpus = await _cpus(monitor)
    present = [cpu for cpu in cpus if cpu.path is not None]
    for cpu in [cpu for cpu in cpus if cpu.path is None][: max(0, vcpus - len(present))]:
        id = "cpu-" + "-".join(map(str, cpu.place))
        await monitor.execute("device_add", {"driver": cpu.type, "id": id, **cpu.props})
    for cpu in present[vcpus:][::-1]:
        path = cpu.path
        assert path is not None

        async def gone(place: tuple[int, ...] = cpu.place, path: str = path) -> bool:
            if all(cpu.path is None for cpu in await _cpus(monitor) if cpu.place == place):
                return True
            with contextlib.suppress(Refused):  # gone meanwhile, or the guest has been asked already
                await monitor.execute("device_del", {"id": path})
            return False

        if not await _until(gone, patience):
            raise Conflict(
                f"the guest did not let go of a virtual processor within {patience:g} s: it has "
                f"{len([cpu for cpu in await _cpus(monitor) if cpu.path is not None])}, and {vcpus} are asked",
                hint="a system that knows no processor hot-plug needs a restart",
            )


# --- memory


async def _resize_memory(monitor: Monitor, current: Current, change: Change, patience: float) -> None:
    if change.ballooned < current.ballooned:
        await _balloon(monitor, current, change.ballooned, patience)
    stays = 0
    if current.room:
        await _request(monitor, change.grown)
        if not await _until(lambda: _has_grown_to(monitor, current.grown, change.grown), patience):
            grown = await _grown(monitor)
            if grown < change.grown:
                await _request(monitor, grown)
                raise Conflict(
                    f"the guest took {format_size(grown - current.grown)} of the "
                    f"{format_size(change.grown - current.grown)} of memory that it was given within {patience:g} s",
                    hint="it needs the driver of virtio-mem (Linux 5.8 or later has it); without it, restart the machine",
                )
            stays = grown - change.grown
    taken = change.ballooned + stays
    if taken > await _ballooned(monitor, current.memory):
        await _balloon(monitor, current, taken, patience)


async def _balloon(monitor: Monitor, current: Current, taken: int, patience: float) -> None:
    try:
        await monitor.set_memory(current.memory - taken)
    except Refused as error:
        raise Conflict(
            "the guest has no driver of virtio-balloon that works yet and gives no memory back",
            hint="try again when it has booted, or restart the machine to start with the new size",
        ) from error

    async def reached() -> bool:
        return abs(await _ballooned(monitor, current.memory) - taken) <= _TOLERANCE

    if not await _until(reached, patience):
        left = await _ballooned(monitor, current.memory)
        raise Conflict(
            f"the guest's balloon holds {format_size(left)} after {patience:g} s, and {format_size(taken)} are asked",
            hint="the guest needs the memory, or has no driver of virtio-balloon; restart it to start with the new size",
        )


async def _has_grown_to(monitor: Monitor, before: int, wanted: int) -> bool:
    grown = await _grown(monitor)
    return grown >= wanted if wanted > before else grown <= wanted


async def _grown(monitor: Monitor) -> int:
    return await monitor.ask(int, "qom-get", {"path": "/machine/peripheral/growth", "property": "size"})


async def _request(monitor: Monitor, size: int) -> None:
    path = {"path": "/machine/peripheral/growth", "property": "requested-size"}
    await monitor.execute("qom-set", {**path, "value": size})


async def _ballooned(monitor: Monitor, memory: int) -> int:
    """Bytes that the balloon holds; 0 where there is none, or no guest has looked at it. Virtio-mem's do not count in it."""
    try:
        return max(0, memory - await monitor.memory())
    except Refused:
        return 0


async def _until(true: Callable[[], Awaitable[bool]], patience: float) -> bool:
    """Whether *true* came true within *patience* seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while True:
                if await true():
                    return True
                await asyncio.sleep(_GLANCE)
    return False


def _vcpus(cpu: int | None) -> int | None:
    return None if cpu is None else -(-cpu // 1000)
