"""What a host has, and lacks, for machines whose memory it cannot read: found once, and judged by a pure function.

Sources: Documentation/virt/kvm/x86/amd-memory-encryption.rst and Documentation/virt/kvm/x86/intel-tdx.rst of the kernel (module
parameters, /dev/sev); docs/system/i386/amd-memory-encryption.rst and docs/system/i386/tdx.rst of QEMU (objects, firmware).
"""

import os
import re
import stat
import struct
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.compute.qemu.accelerator import Accelerator
from lamella.host.compute.qemu.tool import output
from lamella.model.board import Confidential
from lamella.model.host import Capability

SEV_DEVICE = Path("/dev/sev")
_CPUID = Path("/dev/cpu/0/cpuid")
_MODULES = Path("/sys/module")
_PARAMETERS = (("kvm_amd", "sev"), ("kvm_amd", "sev_es"), ("kvm_amd", "sev_snp"), ("kvm_intel", "tdx"))

# Builds of OVMF that measure and accept the guest's memory themselves, where distributions put them.
FIRMWARE = {
    Confidential.SEV_SNP: (
        Path("/usr/share/OVMF/OVMF.amdsev.fd"),
        Path("/usr/share/ovmf/OVMF.amdsev.fd"),
        Path("/usr/share/edk2/ovmf/OVMF.amdsev.fd"),
    ),
    Confidential.TDX: (
        Path("/usr/share/OVMF/OVMF.inteltdx.fd"),
        Path("/usr/share/ovmf/OVMF.inteltdx.fd"),
        Path("/usr/share/edk2/ovmf/OVMF.inteltdx.fd"),
    ),
}
OBJECTS = {Confidential.SEV_SNP: ("sev-snp-guest", "9.1"), Confidential.TDX: ("tdx-guest", "10.1")}
_NAMES = {Confidential.SEV_SNP: "SEV-SNP", Confidential.TDX: "TDX"}


class Encryption(msgspec.Struct, kw_only=True, frozen=True):
    """Where the C-bit is in a page's address, and how many address bits encryption takes (CPUID 0x8000001f, EBX)."""

    c_bit: int
    reduced_bits: int


class Evidence(msgspec.Struct, kw_only=True, frozen=True):
    """What was read of this host. ``parameters`` are of kernel modules, by ``module.name``; ``None`` when it is not there.

    ``objects`` are what this QEMU can make, ``firmware`` the image made for each technology.
    """

    vendor: str
    flags: frozenset[str]
    parameters: dict[str, str | None]
    sev_device: str
    accelerator: Accelerator
    version: str
    objects: frozenset[str]
    firmware: dict[Confidential, Path | None]
    encryption: Encryption | None = None


class Need(msgspec.Struct, kw_only=True, frozen=True):
    """One thing that a technology needs: ``name`` in a word, ``reason`` the sentence."""

    name: str
    present: bool
    reason: str


def needs(technology: Confidential, evidence: Evidence) -> list[Need]:
    """Everything that *technology* needs, in the order in which one would look for it. Pure."""
    found = [_processor(technology, evidence), *_kernel(technology, evidence)]
    if technology is Confidential.SEV_SNP:
        found.append(
            Need(
                name="device",
                present=not evidence.sev_device,
                reason=evidence.sev_device or f"{SEV_DEVICE}, the door to the processor's security firmware, opens",
            )
        )
    kvm = evidence.accelerator.name == "kvm"
    found.append(
        Need(
            name="kvm",
            present=kvm,
            reason=f"KVM runs guests: {evidence.accelerator.reason}"
            if kvm
            else f"KVM cannot be used ({evidence.accelerator.reason}), and an emulated processor keeps no secrets from its host",
        )
    )
    name, since = OBJECTS[technology]
    there = name in evidence.objects
    found.append(
        Need(
            name="qemu",
            present=there,
            reason=f"QEMU {evidence.version} has the object {name}"
            if there
            else f"QEMU {evidence.version} has no object {name}, which came with {since} and has to be compiled in",
        )
    )
    firmware = evidence.firmware.get(technology)
    found.append(
        Need(
            name="firmware",
            present=firmware is not None,
            reason=f"{firmware} is there"
            if firmware is not None
            else f"no OVMF made for {_NAMES[technology]} is there (looked for {', '.join(map(str, FIRMWARE[technology]))})",
        )
    )
    return found


def usable(evidence: Evidence) -> list[Confidential]:
    """The technologies that lack nothing."""
    return [item for item in Confidential if all(need.present for need in needs(item, evidence))]


def capabilities(evidence: Evidence) -> list[Capability]:
    """The level's own first, then each technology's, then each thing that it needs. Pure."""
    parts: list[Capability] = []
    lacking: list[str] = []
    for technology in Confidential:
        found = needs(technology, evidence)
        missing = [need for need in found if not need.present]
        name = f"compute.confidential.{technology}"
        said = "everything that it needs is there" if not missing else "; ".join(need.reason for need in missing)
        parts.append(Capability(name=name, available=not missing, reason=said))
        parts += [Capability(name=f"{name}.{need.name}", available=need.present, reason=need.reason) for need in found]
        if missing:
            lacking.append(f"{_NAMES[technology]} lacks {', '.join(need.name for need in missing)}")
    able = usable(evidence)
    reason = f"{' and '.join(_NAMES[item] for item in able)} can be used" if able else "; ".join(lacking)
    return [
        Capability(name="compute.confidential", available=bool(able), value=", ".join(able), reason=reason),
        *parts,
    ]


def _processor(technology: Confidential, evidence: Evidence) -> Need:
    wanted, vendor, who = {
        Confidential.SEV_SNP: ("sev_snp", "AuthenticAMD", "AMD EPYC from the 7003 series on"),
        Confidential.TDX: (
            "tdx_host_platform",
            "GenuineIntel",
            "Intel Xeon from the fourth (some) or fifth generation on",
        ),
    }[technology]
    present = evidence.vendor == vendor and wanted in evidence.flags
    if present:
        return Need(name="processor", present=True, reason=f"the processor has {wanted} (/proc/cpuinfo)")
    inside = ", and this host is itself a guest" if "hypervisor" in evidence.flags else ""
    seen = f"it is {evidence.vendor}" if evidence.vendor != vendor else f"/proc/cpuinfo shows no flag {wanted}"
    return Need(
        name="processor",
        present=False,
        reason=f"the processor cannot do {_NAMES[technology]} ({who}): {seen or 'it is unknown'}{inside}",
    )


def _kernel(technology: Confidential, evidence: Evidence) -> list[Need]:
    wanted = ["kvm_amd.sev_snp"] if technology is Confidential.SEV_SNP else ["kvm_intel.tdx"]
    found: list[Need] = []
    for name in wanted:
        value = evidence.parameters.get(name)
        module, _, parameter = name.partition(".")
        path = _MODULES / module / "parameters" / parameter
        on = value is not None and value.strip() in ("Y", "1")
        if on:
            reason = f"{path} is {(value or '').strip()}"
        elif value is None:
            reason = f"the kernel has no {path}: {module} is not loaded, or too old for {_NAMES[technology]}"
        else:
            reason = (
                f"{path} is {value.strip()}: it is switched off in the firmware's setup or on the kernel's command line"
            )
        found.append(Need(name="kernel", present=on, reason=reason))
    return found


async def look(home: Home, qemu: Path, version: str, accelerator: Accelerator) -> Evidence:
    """Read all of it.

    :raise Unavailable: when QEMU cannot be asked.
    """
    listed = await output([str(qemu), "-object", "help"], home.mark)
    vendor, flags = processor(Path("/proc/cpuinfo").read_text())
    return Evidence(
        vendor=vendor,
        flags=flags,
        parameters={f"{module}.{name}": _parameter(module, name) for module, name in _PARAMETERS},
        sev_device=_why_no_device(SEV_DEVICE),
        accelerator=accelerator,
        version=version,
        objects=objects(listed),
        firmware={item: next((path for path in FIRMWARE[item] if path.is_file()), None) for item in Confidential},
        encryption=_encryption(),
    )


def processor(cpuinfo: str) -> tuple[str, frozenset[str]]:
    """Vendor and flags of the first processor, from the text of /proc/cpuinfo."""
    vendor = re.search(r"^vendor_id\s*: (\S+)", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", cpuinfo, re.MULTILINE)
    return vendor[1] if vendor else "", frozenset(flags[1].split() if flags else ())


def objects(listed: str) -> frozenset[str]:
    """The names in what ``-object help`` prints."""
    return frozenset(line.strip() for line in listed.splitlines() if line.startswith(" "))


def encryption(ebx: int) -> Encryption:
    """From EBX of CPUID 0x8000001f (AMD64 Architecture Programmer's Manual, volume 3, appendix E)."""
    return Encryption(c_bit=ebx & 0x3F, reduced_bits=ebx >> 6 & 0x3F)


def _encryption() -> Encryption | None:
    with suppress(OSError, struct.error):
        fd = os.open(_CPUID, os.O_RDONLY | os.O_CLOEXEC)
        try:
            eax, ebx, _, _ = struct.unpack("<4I", os.pread(fd, 16, 0x8000001F))
        finally:
            os.close(fd)
        if eax & 0b10:
            return encryption(ebx)
    return None


def _parameter(module: str, name: str) -> str | None:
    try:
        return (_MODULES / module / "parameters" / name).read_text()
    except OSError:
        return None


def _why_no_device(path: Path) -> str:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {path}: the kernel found no security firmware of the processor (driver ccp)"
    except OSError as error:
        return f"{path} does not open ({error.strerror})"
    mode = path.stat().st_mode
    if not (_opens(mode, stat.S_IRGRP | stat.S_IWGRP) or _opens(mode, stat.S_IROTH | stat.S_IWOTH)):
        return f"only root may open {path}, and no QEMU runs as root here (chgrp kvm, chmod 0660)"
    return ""


def _opens(mode: int, wanted: int) -> bool:
    return mode & wanted == wanted
