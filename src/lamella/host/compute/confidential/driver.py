"""The isolation level ``confidential``: a full machine whose memory the processor keeps from its host.

A VM (vm/driver.py) under another command line (arguments.py), where a host can do it (probe.py); where it cannot, every machine is
refused with all the reasons. What the machine is, it proves itself: :meth:`ConfidentialDriver.attest`.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import msgspec

from lamella.host.compute.confidential import arguments, probe
from lamella.host.compute.confidential.attestation import Attestation, attest
from lamella.host.compute.driver import Changed, Home, Limits, Machine
from lamella.host.compute.qemu.size import Size, group_limits
from lamella.host.compute.vm import arguments as vm_arguments
from lamella.host.compute.vm import launching
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.compute.vm.host import HostParts, look
from lamella.model.board import Confidential, Graphics
from lamella.model.errors import LamellaError, Unavailable, Unsupported
from lamella.model.host import Capability
from lamella.model.stream import ExecSpec, ProcessStream

# Where the firmware lies inside the room.
FIRMWARE = Path("/boot/firmware")


class ConfidentialDriver(VmDriver):
    """:class:`VmDriver` for machines that the host cannot look into. They have no reset button: their launch was measured once."""

    name = "confidential"
    resettable = False
    why_no_memory = "its host cannot read it, which is the point"

    def __init__(self, home: Home, changed: Changed) -> None:
        super().__init__(home, changed)
        self._evidence: probe.Evidence | None = None

    async def open(self) -> list[Capability]:
        try:
            self._host = await look(self._home)
            self._evidence = await probe.look(self._home, self._host.qemu, self._host.version, self._host.accelerator)
        except LamellaError as error:
            return [Capability(name="compute.confidential", available=False, reason=str(error))]
        return probe.capabilities(self._evidence)

    def plan(self, host: HostParts, machine: Machine) -> launching.Plan:
        """:raise Unsupported: when this host cannot keep such a machine's memory from itself; every reason is in the sentence."""
        if self._evidence is None:
            raise Unavailable("nothing is known of what this host can encrypt", hint="lamella doctor says why")
        technology = choose(machine.board.confidential, self._evidence)
        return plan(host, machine, technology, self._evidence)

    async def attest(self, id: str, nonce: bytes) -> Attestation:
        """A report on the running machine, signed by its processor, that contains *nonce* (1 to 64 bytes).

        :raise Unsupported: when the guest has no kernel interface for it.
        :raise Unavailable: when no agent answers in the guest.
        """

        async def execute(spec: ExecSpec) -> ProcessStream:
            return await self.exec(id, spec)

        return await attest(execute, nonce)

    async def update(self, id: str, limits: Limits) -> None:
        """Its share of cpu is all that can change: memory and processors were measured at launch."""
        async with self._lock(id):
            session = await self._running(id)
            size = session.process.size
            if (limits.memory or size.memory) != size.memory or (limits.cpu or 0) > size.vcpus * 1000:
                raise Unsupported(
                    "a confidential machine keeps the memory and the processors that were measured at its launch",
                    hint="restart it to boot with the new size",
                    field="memory",
                )
            await asyncio.to_thread(session.group.update, group_limits(limits, size, session.process.accelerator))
            await session.write(limits=limits)

    async def reset(self, id: str) -> None:
        self._refuse("be reset: its launch was measured once; stop and start it")

    async def dump(self, id: str, *, crash: bool) -> AsyncIterator[bytes]:
        self._refuse("be dumped: its host cannot read its memory, which is the point")
        yield b""

    def _refuse(self, what: str) -> NoReturn:
        raise Unsupported(f"a confidential machine cannot {what}", hint="run it with --isolation vm if that is needed")


def choose(wanted: Confidential | None, evidence: probe.Evidence) -> Confidential:
    """The technology to use: the *wanted* one, or the first that works. Pure.

    :raise Unsupported: when it cannot be used here.
    """
    able = probe.usable(evidence)
    if wanted in able or (wanted is None and able):
        return wanted or able[0]
    asked = [wanted] if wanted else list(Confidential)
    reasons = [need.reason for item in asked for need in probe.needs(item, evidence) if not need.present]
    raise Unsupported(
        f"this host cannot run confidential machines: {'; '.join(dict.fromkeys(reasons))}",
        hint="`lamella explain --why-not confidential` lists what is missing",
        field="spec.isolation",
    )


def plan(host: HostParts, machine: Machine, technology: Confidential, evidence: probe.Evidence) -> launching.Plan:
    """The plan of a VM, with its memory under guard.

    :raise Unsupported: when something is asked through which the host could reach in.
    """
    firmware = evidence.firmware[technology]
    if firmware is None:
        raise Unsupported("there is no firmware for confidential machines on this host")
    # Every machine has a screen unless it is told otherwise; these never have.
    board = msgspec.structs.replace(machine.board, graphics=Graphics.NONE)
    made = launching.plan(host, msgspec.structs.replace(machine, board=board))
    arguments.check(made.vm)
    size = Size(vcpus=made.size.vcpus, memory=made.size.memory)
    vm = msgspec.structs.replace(made.vm, sizing=arguments.sizing(size))
    guard = arguments.Guard(technology=technology, firmware=FIRMWARE, encryption=evidence.encryption)
    return msgspec.structs.replace(
        made,
        vm=vm,
        largest=size,
        group=launching.with_the_rest(group_limits(machine.limits, size, host.accelerator.name), machine),
        argv=arguments.protected(vm_arguments.arguments(vm), guard, size),
        shown={**made.shown, firmware: FIRMWARE},
        devices=[probe.SEV_DEVICE] if technology is Confidential.SEV_SNP else [],
    )
