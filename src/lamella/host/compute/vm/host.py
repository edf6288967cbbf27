"""What this host has for full machines: QEMU with its newest board, firmware, a TPM, a proved accelerator, SPICE if it is compiled in."""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.compute.qemu.accelerator import Accelerator, accelerator
from lamella.host.compute.qemu.tool import output
from lamella.host.compute.vm import firmware, tpm
from lamella.host.compute.vm.firmware import Ovmf
from lamella.host.linux import binaries
from lamella.model.errors import LamellaError, Unavailable, Unsupported
from lamella.model.host import Capability

T = TypeVar("T")


class HostParts(msgspec.Struct, kw_only=True, frozen=True):
    """Everything that was found. ``version`` is QEMU's; ``board`` what ``q35`` stands for now, ``boards`` all that it can be;
    ``why_no_*`` say what is missing, and are empty where nothing is.

    ``memory`` is the host's, in bytes."""

    qemu: Path
    version: str
    accelerator: Accelerator
    board: str
    boards: frozenset[str]
    ovmf: Ovmf | None
    memory: int
    why_no_uefi: str
    why_no_tpm: str
    why_no_spice: str

    def board_type(self, wanted: str) -> str:
        """The machine type to start: *wanted*, the one of the first start, or the newest.

        :raise Unsupported: when this QEMU no longer knows it.
        """
        if wanted and wanted not in self.boards:
            raise Unsupported(
                f"this machine began as {wanted}, which QEMU {self.version} on this host does not know",
                hint="run it on a host whose QEMU does, or make it anew with the same disk",
            )
        return wanted or self.board

    def capabilities(self) -> list[Capability]:
        value = f"QEMU {self.version}, {self.board}"
        uefi = not self.why_no_uefi
        found = "the distribution's OVMF is there"
        return [
            Capability(name="compute.vm", available=True, value=value, reason=f"{self.qemu} and our jailer are there"),
            Capability(name="compute.vm.uefi", available=uefi, reason=self.why_no_uefi or found),
            Capability(
                name="compute.vm.secure-boot",
                available=uefi,
                reason=self.why_no_uefi or f"{found}, with the build that enforces it and keys enrolled",
            ),
            Capability(
                name="compute.vm.tpm",
                available=not self.why_no_tpm,
                reason=self.why_no_tpm or "swtpm is there (TPM 2.0)",
            ),
            Capability(
                name="compute.vm.spice",
                available=not self.why_no_spice,
                reason=self.why_no_spice or "it is compiled into this QEMU",
            ),
        ]


async def look(home: Home) -> HostParts:
    """Find everything that a machine needs, and try KVM once a boot of the host.

    :raise LamellaError: when something is missing without which there is no machine at all; the sentence says what.
    """
    qemu = binaries.tool("qemu-system-x86_64").resolve()
    binaries.own("lamella-jailer")
    said, machines, spice = await asyncio.gather(
        output([str(qemu), "--version"], home.mark),
        output([str(qemu), "-machine", "help"], home.mark),
        _why_no_spice(qemu, home),
    )
    match = re.search(r"version (\S+)", said)
    version = match[1] if match else said.partition("\n")[0]
    board, boards = machine_types(machines)
    ovmf, why_no_uefi = _try(firmware.find)
    _, why_no_tpm = _try(tpm.find)
    return HostParts(
        qemu=qemu,
        version=version,
        accelerator=await accelerator(home, qemu, version),
        board=board,
        boards=boards,
        ovmf=ovmf,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        why_no_uefi=why_no_uefi,
        why_no_tpm=why_no_tpm,
        why_no_spice=spice,
    )


def machine_types(text: str) -> tuple[str, frozenset[str]]:
    """What ``q35`` is short for, and every q35 there is, from the words of ``-machine help``.

    :raise Unavailable: when this QEMU has no q35.
    """
    boards = frozenset(re.findall(r"^(pc-q35-\d+\.\d+\S*) ", text, re.MULTILINE))
    newest = re.search(r"^q35 .*\(alias of (\S+)\)", text, re.MULTILINE)
    if newest is None:
        raise Unavailable("this QEMU has no q35 board", hint="install qemu-system-x86")
    return newest[1], boards | {newest[1]}


async def _why_no_spice(qemu: Path, home: Home) -> str:
    """Nothing when QEMU lists the options of SPICE (and ends with 1 for having done so)."""
    try:
        said = await output([str(qemu), "-spice", "help"], home.mark, good=(0, 1))
    except LamellaError as error:
        return f"this QEMU could not be asked about SPICE: {error.message}"
    return "" if "spice options" in said else "this QEMU was compiled without SPICE"


def _try(find: Callable[[], T]) -> tuple[T | None, str]:
    try:
        return find(), ""
    except LamellaError as error:
        return None, str(error)
