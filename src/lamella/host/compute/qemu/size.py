"""How large a machine under QEMU is, and what QEMU needs beside it. Pure."""

import msgspec

from lamella.host.compute.driver import Limits

MIB = 1 << 20

# What QEMU needs beside the guest's memory. TCG keeps the translated code (TRANSLATED) and tables about it.
TRANSLATED = 128 * MIB
OVERHEAD = {"kvm": 128 * MIB, "tcg": 192 * MIB + TRANSLATED}
THREADS = 128


class Size(msgspec.Struct, kw_only=True, frozen=True):
    """Whole virtual processors, and memory in bytes (whole MiB)."""

    vcpus: int
    memory: int

    @property
    def limits(self) -> Limits:
        """The largest limits that fit into it."""
        return Limits(cpu=self.vcpus * 1000, memory=self.memory)


def group_limits(limits: Limits, size: Size, accelerator: str) -> Limits:
    """What the group around QEMU may use: the guest's memory and QEMU's own, the cpu that was asked for, QEMU's threads."""
    return Limits(cpu=limits.cpu, memory=size.memory + OVERHEAD[accelerator], pids=size.vcpus + THREADS)


def balloon(*, gives_memory: bool) -> str:
    """The options of a machine's balloon. Pages that the guest frees go back to the host. A guest from which memory is taken that it may
    have (*gives_memory*) takes it back before it would kill one of its processes; one whose size a person changed may not."""
    return f"id=balloon,free-page-reporting=on,deflate-on-oom={'on' if gives_memory else 'off'}"
