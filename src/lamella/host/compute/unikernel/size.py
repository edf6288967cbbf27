"""How large a unikernel is, and which changes it takes while it runs. Pure."""

from lamella.host.compute.driver import Limits
from lamella.host.compute.qemu.size import MIB, Size, group_limits
from lamella.model import sizes
from lamella.model.errors import Unsupported
from lamella.model.instance import Isolation
from lamella.model.quantity import format_cpu, format_size

DEFAULT_MEMORY = sizes.DEFAULT_MEMORY[Isolation.UNIKERNEL]
SMALLEST_MEMORY = 4 * MIB
LARGEST_VCPUS = 64


def size_of(limits: Limits) -> Size:
    """The size that a unikernel with these limits boots with.

    :raise Unsupported: when QEMU cannot offer it.
    """
    memory = DEFAULT_MEMORY if limits.memory is None else limits.memory // MIB * MIB
    if memory < SMALLEST_MEMORY:
        raise Unsupported(
            f"a unikernel has at least {format_size(SMALLEST_MEMORY)} of memory", hint="ask for more", field="memory"
        )
    vcpus = 1 if limits.cpu is None else -(-limits.cpu // 1000)
    if vcpus > LARGEST_VCPUS:
        raise Unsupported(
            f"a unikernel has at most {LARGEST_VCPUS} virtual processors, not {vcpus}",
            hint="ask for less cpu",
            field="cpu",
        )
    return Size(vcpus=vcpus, memory=memory)


def change(size: Size, wanted: Limits, accelerator: str) -> Limits:
    """The limits of the group that give *wanted* to a unikernel that booted with *size*: only its share of cpu can change.

    :raise Unsupported: when it needs another memory, or more processors.
    """
    if wanted.cpu is not None and wanted.cpu > size.vcpus * 1000:
        raise Unsupported(
            f"this unikernel booted with {size.vcpus} virtual processor{'s' if size.vcpus > 1 else ''} and "
            f"cannot use {format_cpu(wanted.cpu)} cores while it runs",
            hint="restart it to boot with the new size",
            field="cpu",
        )
    if wanted.memory is not None and wanted.memory // MIB * MIB != size.memory:
        raise Unsupported(
            f"this unikernel booted with {format_size(size.memory)} of memory, which cannot change while it runs: "
            "nothing inside would give it back or take it up",
            hint="restart it to boot with the new size",
            field="memory",
        )
    return group_limits(wanted, size, accelerator)
