"""The command line of a QEMU whose guest's memory is encrypted: what a VM's (vm/arguments.py) becomes. Pure; nothing of it was ever run,
since no processor, kernel or QEMU here can (docs/hardware.md).

Sources: docs/system/i386/amd-memory-encryption.rst (QEMU 9.1, "Launching (SEV-SNP)"), docs/system/i386/tdx.rst (QEMU 10.1), and
qapi/qom.json (SevSnpGuestProperties, TdxGuestProperties). Virtio devices of an encrypted guest reach its memory through buffers that it
shares, and must be told so (``iommu_platform``).
"""

import base64
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lamella.host.compute.confidential.probe import Encryption
from lamella.host.compute.qemu.size import MIB, Size
from lamella.host.compute.vm.arguments import Vm
from lamella.model.board import Confidential, Firmware, Graphics, Hardware, Watchdog
from lamella.model.errors import Unsupported

# Guest policy of SEV-SNP (AMD publication 56860, table 9): bit 17 must be one, bit 16 allows SMT; bit 19, debugging by the host, is off.
SNP_POLICY = 1 << 17 | 1 << 16
# Attributes of a TD (Intel 348551, TD_PARAMS): bit 28, SEPT_VE_DISABLE, which Linux guests insist on; bit 0, debugging, is off.
TD_ATTRIBUTES = 1 << 28

# Where every EPYC that has SNP keeps the C-bit, for hosts that do not say.
USUAL_ENCRYPTION = Encryption(c_bit=51, reduced_bits=1)

_GUARD, _MEMORY = "guard", "memory"
_DROPPED = ("virtio-balloon-pci", "vmgenid")
_VIRTIO = ("virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci", "virtio-serial-pci", "virtio-scsi-pci")


class Guard(msgspec.Struct, kw_only=True, frozen=True):
    """How memory is kept from the host. ``firmware`` is the image made for the technology, a path in the room.

    ``host_data`` (at most 32 bytes for SNP, 48 for TDX) is measured into the report beside the guest, for whoever checks it.
    """

    technology: Confidential
    firmware: Path
    encryption: Encryption | None = None
    kernel_hashes: bool = False
    host_data: bytes = b""


def check(vm: Vm) -> None:
    """:raise Unsupported: when *vm* has something through which the host could reach in, or that cannot work without that."""
    asked = {
        "firmware of its own choice (it gets the one made for it)": vm.firmware is not Firmware.BIOS or vm.secure_boot,
        "a TPM that the host emulates (the processor's own report takes its place)": vm.tpm,
        "a screen, which the host would see": vm.graphics is not Graphics.NONE,
        "generic hardware, whose drivers know nothing of shared buffers": vm.hardware is not Hardware.VIRTIO,
        "a watchdog of the host": vm.watchdog is not Watchdog.NONE,
    }
    found = [what for what, wanted in asked.items() if wanted]
    if found:
        raise Unsupported(
            f"a confidential machine cannot have {'; nor '.join(found)}", hint="leave it out", field="spec.board"
        )


def sizing(size: Size) -> list[str]:
    """Processors and memory, fixed at launch: what was not measured then is not the guest's."""
    return ["-smp", str(size.vcpus), "-m", f"{size.memory // MIB}M"]


def memory_object(technology: Confidential, size: Size) -> list[str]:
    """The shared half of the guest's memory; KVM keeps the private half where nothing maps it (guest_memfd)."""
    if technology is Confidential.SEV_SNP:
        return ["-object", f"memory-backend-memfd,id={_MEMORY},size={size.memory},share=on,reserve=off,prealloc=off"]
    return ["-object", f"memory-backend-ram,id={_MEMORY},size={size.memory}"]


def guard_object(guard: Guard) -> list[str]:
    """The object that QEMU starts the guest's protection with."""
    match guard.technology:
        case Confidential.SEV_SNP:
            encryption = guard.encryption or USUAL_ENCRYPTION
            words = f"sev-snp-guest,id={_GUARD},cbitpos={encryption.c_bit},reduced-phys-bits={encryption.reduced_bits}"
            words += f",policy={SNP_POLICY:#x}"
            if guard.kernel_hashes:
                words += ",kernel-hashes=on"
            if guard.host_data:
                words += f",host-data={_padded(guard.host_data, 32)}"
        case Confidential.TDX:
            words = f"tdx-guest,id={_GUARD},attributes={TD_ATTRIBUTES}"
            if guard.host_data:
                words += f",mrconfigid={_padded(guard.host_data, 48)}"
    return ["-object", words]


def protected(arguments: Iterable[str], guard: Guard, size: Size) -> list[str]:
    """The argument vector of a VM (which :func:`check` has passed), with its memory under *guard*.

    The board is given the guard and the memory; the processor is one that the host has, since only that can be measured; the firmware is
    one image that is loaded into memory (the guards know no flash); what reads or moves memory behind the guest's back is left out.
    """
    words = list(arguments)
    found: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        value = words[position + 1] if position + 1 < len(words) else ""
        position += 2
        if word == "-machine":
            found += ["-machine", _board(value, guard)]
        elif word == "-cpu":
            found += ["-cpu", "EPYC-v4" if guard.technology is Confidential.SEV_SNP else "host"]
        elif word == "-accel":
            found += ["-accel", "kvm"]
        elif word == "-device" and value.split(",")[0] in _DROPPED:
            continue
        elif word == "-device" and value.split(",")[0] in _VIRTIO:
            found += ["-device", f"{value},disable-legacy=on,iommu_platform=on"]
        else:
            found.append(word)
            position -= 1
    found += [*memory_object(guard.technology, size), *guard_object(guard), "-bios", str(guard.firmware)]
    return found


def _board(value: str, guard: Guard) -> str:
    kept = [part for part in value.split(",") if not part.startswith(("smm=", "pflash", "graphics="))]
    kept += ["smm=off", f"confidential-guest-support={_GUARD}", f"memory-backend={_MEMORY}"]
    if guard.technology is Confidential.TDX:
        kept.append("kernel-irqchip=split")
    return ",".join(kept)


def _padded(data: bytes, size: int) -> str:
    if len(data) > size:
        raise Unsupported(f"host data is at most {size} bytes, not {len(data)}", hint="give its digest")
    return base64.b64encode(data.ljust(size, b"\0")).decode()
