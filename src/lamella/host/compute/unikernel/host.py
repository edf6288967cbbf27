"""What this host has for unikernels: QEMU and an accelerator that was proved. They bring their own kernel."""

import re
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.compute.qemu.accelerator import Accelerator, accelerator
from lamella.host.compute.qemu.tool import output
from lamella.host.linux import binaries
from lamella.model.host import Capability


class HostParts(msgspec.Struct, kw_only=True, frozen=True):
    """Everything that was found. ``version`` is QEMU's."""

    qemu: Path
    version: str
    accelerator: Accelerator

    @property
    def pci_board(self) -> str:
        """The machine type that ``q35`` means now, so that it means the same at the next start."""
        match = re.match(r"(\d+)\.(\d+)", self.version)
        return f"pc-q35-{match[1]}.{match[2]}" if match else "q35"

    def capabilities(self) -> list[Capability]:
        reason = f"{self.qemu} is there; PVH, multiboot 1 and Linux kernels start on its microvm board"
        return [
            Capability(name="compute.unikernel", available=True, value=f"QEMU {self.version}", reason=reason),
            Capability(name="accelerator", available=True, value=self.accelerator.name, reason=self.accelerator.reason),
        ]


async def look(home: Home) -> HostParts:
    """Find everything that a unikernel needs, and try KVM once a boot of the host.

    :raise LamellaError: when something is missing; the sentence says what.
    """
    qemu = binaries.tool("qemu-system-x86_64").resolve()
    for name in ("lamella-jailer", "lamella-keeper"):
        binaries.own(name)
    said = await output([str(qemu), "--version"], home.mark)
    match = re.search(r"version (\S+)", said)
    version = match[1] if match else said.partition("\n")[0]
    return HostParts(qemu=qemu, version=version, accelerator=await accelerator(home, qemu, version))
