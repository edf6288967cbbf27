"""What isolates a running machine, read from it: /proc of its QEMU and its TPM, the files of its group, and what QEMU says."""

import asyncio
import contextlib

from lamella.host.compute.microvm import mechanisms
from lamella.host.compute.vm import tpm
from lamella.host.compute.vm.session import Session
from lamella.model.contract import Mechanism
from lamella.model.errors import LamellaError


async def gather(session: Session) -> list[Mechanism]:
    """Everything that could be read; nothing when it ends meanwhile."""
    pid = session.process.pid
    try:
        evidence = await asyncio.to_thread(mechanisms.read, pid)
    except OSError:
        return []
    found = mechanisms.of_process(evidence) + mechanisms.of_group(session.group, pid)
    machine = session.machine
    if machine is not None and machine.board.tpm:
        found.append(await asyncio.to_thread(_tpm, session))
    with contextlib.suppress(LamellaError):
        monitor = await session.monitor()
        found += mechanisms.of_machine(
            kvm=await monitor.kvm(), memory=await monitor.memory(), vcpus=session.process.size.vcpus, kernel=""
        )
    return found


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
