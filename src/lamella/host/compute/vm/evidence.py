"""What isolates a running machine, read from it: /proc of its QEMU and its TPM, the files of its group, and what QEMU says."""

import asyncio
import contextlib
from pathlib import Path

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.qemu import mechanisms
from lamella.host.compute.qemu.layers import described
from lamella.host.compute.vm import tpm, varstore
from lamella.host.compute.vm.session import Session
from lamella.host.compute.vm.volumes import mountable
from lamella.model.contract import LIMIT, Mechanism
from lamella.model.errors import LamellaError
from lamella.model.quantity import format_size


async def gather(session: Session) -> list[Mechanism]:
    """Everything that could be read; nothing when it ends meanwhile."""
    pid = session.process.pid
    try:
        evidence = await asyncio.to_thread(mechanisms.read, pid)
    except OSError:
        return []
    found = mechanisms.of_process(evidence) + mechanisms.of_group(session.group, pid)
    machine = session.machine
    if machine is not None:
        found += await asyncio.to_thread(_of_files, session, machine)
        found += [_volume(session, volume) for volume in machine.volumes]
    with contextlib.suppress(LamellaError):
        monitor = await session.monitor()
        found += mechanisms.of_machine(
            kvm=await monitor.kvm(), memory=await monitor.memory(), vcpus=session.process.size.vcpus, kernel=""
        )
    return found


def _of_files(session: Session, machine: Machine) -> list[Mechanism]:
    """What lies on the host's disk for it, and the process that is its TPM."""
    found: list[Mechanism] = []
    if machine.board.tpm:
        found.append(_tpm(session))
    if machine.board.secure_boot:
        found.append(_secure_boot(session.places.state))
    if machine.disk is not None:
        size = format_size(machine.disk.size) if machine.disk.size else "as its image says"
        found.append(Mechanism(name=f"{LIMIT}disk", value=size, evidence="the size of its root disk"))
    return found


def _volume(session: Session, volume: MountedVolume) -> Mechanism:
    why_not = session.mounting.why_not(volume)
    how = f"{volume.filesystem} at {volume.target}{', read-only' if volume.read_only else ''}, by the guest's agent"
    return Mechanism(
        name=f"volume {volume.name}",
        value=why_not or how,
        evidence=described(volume),
        in_force=not why_not or not mountable(volume),
    )


def _secure_boot(state: Path) -> Mechanism:
    file = state / "variables-secure.fd"
    try:
        enforced = varstore.enforced(file.read_bytes())
    except (LamellaError, OSError):
        enforced = False
    value = (
        "enforced by the firmware, below the guest's kernel" if enforced else "not enforced: there is no platform key"
    )
    return Mechanism(name="Secure Boot", value=value, evidence=f"the platform key in {file.name}", in_force=enforced)


def _tpm(session: Session) -> Mechanism:
    pid = tpm.process(session.group)
    if pid is None:
        return Mechanism(
            name="TPM", value="its process has ended", evidence="the machine's control group", in_force=False
        )
    try:
        read = mechanisms.of_process(mechanisms.read(pid))
    except OSError:
        return Mechanism(name="TPM", value="its process has ended", evidence=f"/proc/{pid}", in_force=False)
    walls = [item for item in read if item.name != "root"]
    return Mechanism(
        name="TPM",
        value="2.0, a process of its own behind the same walls, that can write its own state only",
        evidence=f"/proc/{pid}/status, /proc/{pid}/ns",
        in_force=all(item.in_force for item in walls),
    )
