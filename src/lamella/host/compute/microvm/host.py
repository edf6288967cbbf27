"""What this host has for microVMs: QEMU, a kernel and initramfs for the guests, and an accelerator that was proved."""

import asyncio
import re
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.compute.microvm.boot import BootFiles, boot_files
from lamella.host.compute.qemu.accelerator import Accelerator, accelerator
from lamella.host.compute.qemu.tool import output
from lamella.host.linux import binaries
from lamella.model.host import Capability


class HostParts(msgspec.Struct, kw_only=True, frozen=True):
    """Everything that was found. ``version`` is QEMU's."""

    qemu: Path
    version: str
    boot: BootFiles
    accelerator: Accelerator

    def capabilities(self) -> list[Capability]:
        value = f"QEMU {self.version}, kernel {self.boot.kernel_version}"
        reason = f"{self.qemu}, a kernel for guests and our agent are there"
        return [
            Capability(name="compute.microvm", available=True, value=value, reason=reason),
            Capability(name="accelerator", available=True, value=self.accelerator.name, reason=self.accelerator.reason),
        ]


async def look(home: Home) -> HostParts:
    """Find everything that a microVM needs, and try KVM once a boot of the host.

    :raise LamellaError: when something is missing; the sentence says what.
    """
    qemu = binaries.tool("qemu-system-x86_64").resolve()
    for name in ("mkfs.erofs", "mkfs.ext4"):
        binaries.tool(name)
    binaries.own("lamella-jailer")
    boot = await asyncio.to_thread(boot_files, home.state)
    said = await output([str(qemu), "--version"], home.mark)
    match = re.search(r"version (\S+)", said)
    version = match[1] if match else said.partition("\n")[0]
    found = await accelerator(home, qemu, version)
    return HostParts(qemu=qemu, version=version, boot=boot, accelerator=found)
