"""What is done inside a VM, by whoever answers there: our agent, else qemu-guest-agent, else nobody.

| verb | our agent | qemu-guest-agent |
| --- | --- | --- |
| exec | yes | as root, no terminal, input before the start, output after the end |
| stat, list, read, write, make directory | yes | yes, through a POSIX shell in the guest |
| usage | yes | of a Linux guest |
| shutdown, reboot, freeze, thaw | yes | yes |
| reseed, set the clock | yes | no |

exec and the file verbs wait for a guest that may be booting: up to ``BOOT_PATIENCE`` seconds, while it began to boot, or its agent
stopped to answer (it may boot again), less than five minutes ago. The others do not wait, but for the first ten seconds after
:meth:`Inside.open`, in which an agent that is there introduces itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import msgspec

from lamella.host.compute.driver import MountedVolume
from lamella.host.compute.guest import qga_files
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.qga import QgaClient
from lamella.host.compute.guest.qga_process import start_process
from lamella.host.compute.qemu.layers import serial
from lamella.host.compute.vm.port import Port
from lamella.model.errors import LamellaError, Unavailable, Unsupported
from lamella.model.files import FileInfo
from lamella.model.resource import now
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import Usage

BOOT_PATIENCE = 90.0
YOUNG = 300.0
INTRODUCTION = 10.0

# Thaws after $1 seconds what can be thawed, whatever happens to its starter. Nothing of it writes.
_THAW = """
command -v fsfreeze >/dev/null || exit 127
sleep "$1"
while read -r device place rest; do
  case $device in /dev/*) fsfreeze -u "$place" 2>/dev/null;; esac
done </proc/mounts
"""

_HOW = (
    "use an image with cloud-init (the seed drive starts Lamella's agent), a disk made by lamella image build --disk, "
    "or install qemu-guest-agent in the guest"
)
_HOW_OURS = (
    "use an image with cloud-init (the seed drive starts the agent) or a disk made by lamella image build --disk"
)

Agent = GuestClient | QgaClient


class Agents(msgspec.Struct, kw_only=True, frozen=True):
    """Which agents answer now."""

    ours: bool = False
    qga: bool = False


def patience(age: float | None) -> float:
    """How long, in seconds, a verb waits for an agent of a guest that began to boot *age* seconds ago; ``None`` is long ago."""
    return 0.0 if age is None else max(0.0, min(BOOT_PATIENCE, YOUNG - age))


class Inside:
    """Both ports of one running VM. ``started`` is when its guest began to boot; ``None`` is long ago.

    Made before the VM runs or when it is adopted; :meth:`open` needs a running event loop. The caller sees to it that no verb is
    asked of a paused guest: it would be taken for one that does not answer.
    """

    def __init__(self, agent_socket: Path, qga_socket: Path, *, started: datetime | None = None) -> None:
        self.started = started
        self._opened = 0.0
        self._frozen = 0
        self._thawer: int | None = None
        self._moved = asyncio.Event()
        self._ours: Port[GuestClient] = Port(agent_socket, _greet, GuestClient.state, self._moved.set)
        self._qga: Port[QgaClient] = Port(qga_socket, _synchronize, QgaClient.ping, self._moved.set)

    def open(self) -> None:
        """Begin to look for agents; returns at once."""
        self._opened = asyncio.get_running_loop().time()
        self._ours.open()
        self._qga.open()

    async def close(self) -> None:
        """Let go of both ports; the guest lives on."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ours.close())
            tasks.create_task(self._qga.close())

    @property
    def agents(self) -> Agents:
        """Which agents answered last, without asking them."""
        return Agents(ours=self._ours.client is not None, qga=self._qga.client is not None)

    async def port_changed(self, *, ours: bool, opened: bool) -> None:
        """QEMU's event VSERPORT_CHANGE: the guest opened or closed a port. Without it a reboot is noticed at the next verb."""
        if not opened:
            await (self._ours if ours else self._qga).dropped()

    async def exec(self, spec: ExecSpec) -> ProcessStream:
        """Run a process in the guest.

        :raise Unsupported: when nobody answers there, or who answers cannot do what *spec* asks.
        :raise Unavailable: when an agent has answered before and does not now.
        """
        agent = await self._agent("exec", only_ours=spec.terminal)
        return await (agent.exec(spec) if isinstance(agent, GuestClient) else start_process(agent, spec))

    async def stat(self, path: str) -> FileInfo:
        """:raise NotFound: when nothing is there. All file verbs raise as :meth:`exec` does when nobody answers."""
        agent = await self._agent("stat")
        return await (agent.stat(path) if isinstance(agent, GuestClient) else qga_files.stat_path(agent, path))

    async def list_directory(self, path: str) -> list[FileInfo]:
        agent = await self._agent("list")
        if isinstance(agent, GuestClient):
            return await agent.list_directory(path)
        return await qga_files.list_directory(agent, path)

    async def read_file(self, path: str) -> AsyncIterator[bytes]:
        agent = await self._agent("read")
        pieces = agent.read_file(path)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def write_file(
        self, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        agent = await self._agent("write")
        if isinstance(agent, GuestClient):
            await agent.write_file(path, data, mode=mode, uid=uid, gid=gid)
        else:
            await qga_files.write_file(agent, path, data, mode=mode, uid=uid, gid=gid)

    async def make_directory(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        agent = await self._agent("make directory")
        if isinstance(agent, GuestClient):
            await agent.make_directory(path, mode=mode, uid=uid, gid=gid)
        else:
            await qga_files.make_directory(agent, path, mode=mode, uid=uid, gid=gid)

    async def usage(self) -> Usage:
        """What the guest says that it uses. Does not wait.

        :raise Unsupported, Unavailable: when nobody answers.
        """
        agent = await self._agent("usage", wait=False)
        return await (agent.usage() if isinstance(agent, GuestClient) else qga_files.usage(agent))

    async def shutdown(self, *, reboot: bool = False) -> None:
        """Ask the guest to power off, or to reboot; returns when it has been asked. Does not wait for an agent.

        :raise Unsupported, Unavailable: when nobody answers; ACPI's power button is then what is left.
        """
        agent = await self._agent("shutdown", wait=False)
        if isinstance(agent, GuestClient):
            # A guest that is quick takes its agent away before it has answered.
            with contextlib.suppress(Unavailable):
                await agent.power(reboot=reboot)
        else:
            await agent.shutdown("reboot" if reboot else "powerdown")

    async def freeze(self, deadline: float) -> int:
        """Hold writes to the guest's disks until :meth:`thaw`; returns how many file systems stand still. Our agent lets go after
        *deadline* seconds; where qemu-guest-agent is what there is, a shell that was started before does (fsfreeze of util-linux)."""
        agent = await self._agent("freeze", wait=False)
        self._frozen = 0
        if isinstance(agent, GuestClient):
            return await agent.freeze(deadline)
        self._thawer = await agent.start("/bin/sh", ["-c", _THAW, "sh", f"{max(deadline, 1):.0f}"])
        self._frozen = await agent.freeze()
        return self._frozen

    async def thaw(self) -> bool:
        """Whether everything stood still until now."""
        agent = await self._agent("thaw", wait=False)
        if isinstance(agent, GuestClient):
            return await agent.thaw()
        held = await agent.thaw() == self._frozen > 0
        if self._thawer is not None:
            # It must not thaw what is frozen the next time.
            with contextlib.suppress(LamellaError):
                await agent.start("/bin/sh", ["-c", f"pkill -P {self._thawer}; kill {self._thawer}"])
        self._frozen, self._thawer = 0, None
        return held

    async def mount(self, volume: MountedVolume) -> None:
        """Mount a volume where it belongs. Our agent alone can, and is not waited for."""
        agent = await self._agent("mount", only_ours=True, wait=False)
        assert isinstance(agent, GuestClient)
        name = serial(volume.device)
        await agent.mount(name, volume.target, volume.filesystem, read_only=volume.read_only)

    async def unmount(self, volume: MountedVolume) -> None:
        """:raise Conflict: when something inside uses it."""
        agent = await self._agent("unmount", only_ours=True, wait=False)
        assert isinstance(agent, GuestClient)
        await agent.unmount(serial(volume.device), volume.target)

    async def moved(self) -> GuestClient | None:
        """Wait until an agent begins or stops to answer; our agent's conversation then, if there is one."""
        self._moved.clear()
        await self._moved.wait()
        return self._ours.client

    @property
    def ours(self) -> GuestClient | None:
        """The conversation with our agent, without asking it."""
        return self._ours.client

    async def meet_ours(self, patience: float) -> GuestClient:
        """The conversation with our agent; it is waited for *patience* seconds.

        :raise Unavailable: when it does not answer in that time.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while True:
                    self._moved.clear()
                    if (ours := await self._ours.alive()) is not None:
                        return ours
                    await self._moved.wait()
        raise Unavailable(
            f"the agent in the guest did not answer within {patience:g} s", hint="see the guest's console"
        )

    @property
    def met_ours(self) -> bool:
        """Whether our agent has ever answered."""
        return self._ours.met

    async def reseed(self, entropy: bytes) -> None:
        """Mix *entropy* into the guest's random numbers and set its clock: after a clone, or a long pause. Our agent alone can."""
        agent = await self._agent("reseed", only_ours=True, wait=False)
        assert isinstance(agent, GuestClient)
        await agent.reseed(entropy)
        await agent.set_time()

    async def _agent(self, verb: str, *, only_ours: bool = False, wait: bool = True) -> Agent:
        time = asyncio.get_running_loop().time
        begun = time()
        while True:
            self._moved.clear()
            if (ours := await self._ours.alive()) is not None:
                return ours
            if not only_ours and (qga := await self._qga.alive()) is not None:
                return qga
            # An agent that answers does so at once; but who has only just begun to look has not met it yet.
            until = max(begun + patience(self._age(begun)) if wait else begun, self._opened + INTRODUCTION)
            if time() >= until:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._moved.wait()
        met = self._ours.met or (self._qga.met and not only_ours)
        raise _nobody(verb, self.agents, met=met, only_ours=only_ours, waited=time() - begun)

    def _age(self, moment: float) -> float | None:
        """Seconds, at *moment* of the event loop's time, since the guest began to boot, or since an agent stopped to answer, which it
        does when the guest boots again. Negative when that came later."""
        ages = [moment - port.lost for port in (self._ours, self._qga) if port.lost is not None]
        if self.started is not None:
            ages.append((now() - self.started).total_seconds() - (asyncio.get_running_loop().time() - moment))
        return min(ages, default=None)


def _nobody(verb: str, agents: Agents, *, met: bool, only_ours: bool, waited: float) -> Unavailable | Unsupported:
    time = f" in {waited:.0f} s" if waited >= 1 else ""
    if met:
        return Unavailable(
            f"{verb} needs an agent in the guest; the one that answered before did not{time}",
            hint="the guest may be booting again, starved or hung; see its console",
        )
    if only_ours and agents.qga:
        return Unsupported(
            f"{verb} as asked needs Lamella's agent in the guest; qemu-guest-agent answers and cannot do it",
            hint=_HOW_OURS,
        )
    if only_ours:
        return Unsupported(
            f"{verb} as asked needs Lamella's agent in the guest, and it did not answer{time}", hint=_HOW_OURS
        )
    return Unsupported(
        f"{verb} needs Lamella's agent or qemu-guest-agent in the guest, and neither answered{time}", hint=_HOW
    )


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> GuestClient:
    return await GuestClient.over(reader, writer, timeout=timeout)


async def _synchronize(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> QgaClient:
    return await QgaClient.over(reader, writer, timeout=timeout)
