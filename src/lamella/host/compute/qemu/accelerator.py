"""Which accelerator works on this host: not whether ``/dev/kvm`` opens, but whether a guest boots on it.

The probe (native/probe.S) is a guest of a few hundred bytes that enters 64-bit mode, as every kernel does, and ends QEMU with
a code of its own. There are hosts whose KVM makes a VM and runs real mode, yet never gets that far.
"""

import os
import stat
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.compute.qemu.places import boot_id
from lamella.host.compute.qemu.tool import output
from lamella.host.linux import binaries
from lamella.host.linux.processes import environment, run
from lamella.model.errors import LamellaError, Unavailable

DEVICE = Path("/dev/kvm")
DEADLINE = 2.0
PROVED = 43  # isa-debug-exit: (0x15 << 1) | 1


class Accelerator(msgspec.Struct, kw_only=True, frozen=True):
    """``name`` is ``kvm`` or ``tcg``, ``reason`` how that was found out. ``boot`` and ``qemu`` say for what it is true.

    ``tsc_khz`` is how fast the host's time stamp counter runs; ``group`` the one that may open the device.
    """

    name: str
    reason: str
    boot: str
    qemu: str
    tsc_khz: int = 0
    group: int | None = None


async def accelerator(home: Home, qemu: Path, version: str) -> Accelerator:
    """The accelerator to use, proved once a boot of the host and version of QEMU; the verdict is kept in Home.run.

    :raise Unavailable: when one of our own programs was not built.
    """
    path = home.run / "accelerator.json"
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Accelerator)
        if known.boot == boot_id() and known.qemu == version:
            return known
    except (OSError, msgspec.MsgspecError):
        pass
    why_not = await _prove(qemu, home)
    if why_not is None:
        reason = "a probe guest reached 64-bit mode under KVM"
        found = Accelerator(name="kvm", reason=reason, boot=boot_id(), qemu=version, group=DEVICE.stat().st_gid)
    else:
        reason = f"{why_not}; QEMU translates instead"
        found = Accelerator(name="tcg", reason=reason, boot=boot_id(), qemu=version, tsc_khz=await _tsc(home))
    home.run.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_bytes(msgspec.json.encode(found))
    new.replace(path)
    return found


async def _prove(qemu: Path, home: Home) -> str | None:
    """Why KVM cannot be used, or ``None`` when it can."""
    try:
        mode = DEVICE.stat().st_mode
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "there is no /dev/kvm on this host"
    except OSError as error:
        return f"/dev/kvm does not open ({error.strerror})"
    argv = [str(qemu), "-machine", "microvm", "-accel", "kvm", "-m", "16M", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-kernel", str(binaries.own("lamella-probe")), "-sandbox", "on"]
    argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    try:
        code, said = await run(argv, environment=environment(home.mark), timeout=DEADLINE)
    except Unavailable:
        return f"/dev/kvm opens, but a probe guest did not reach 64-bit mode under it within {DEADLINE:g} s"
    except LamellaError as error:
        return f"KVM could not be tried ({error.message})"
    if code != PROVED:
        return f"/dev/kvm opens, but QEMU could not run a probe guest under it (exit {code}: {said[-200:]})"
    group_may = mode & (stat.S_IRGRP | stat.S_IWGRP) == stat.S_IRGRP | stat.S_IWGRP
    everyone_may = mode & (stat.S_IROTH | stat.S_IWOTH) == stat.S_IROTH | stat.S_IWOTH
    if not group_may and not everyone_may:
        return "KVM works, but only root may open /dev/kvm, and no QEMU runs as root here (chgrp kvm, chmod 0660)"
    return None


async def _tsc(home: Home) -> int:
    """How fast the host's time stamp counter runs, in kHz, measured."""
    text = await output([str(binaries.own("lamella-tsc"))], home.mark)
    return int(text)
