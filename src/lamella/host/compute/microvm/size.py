"""How large a microVM is, and which changes it takes while it runs. Pure."""

import msgspec

from lamella.host.compute.driver import Limits
from lamella.host.compute.qemu.size import MIB, Size, group_limits
from lamella.model import sizes
from lamella.model.errors import Unsupported
from lamella.model.instance import Isolation
from lamella.model.quantity import format_cpu, format_size

DEFAULT_MEMORY = sizes.DEFAULT_MEMORY[Isolation.MICROVM]
SMALLEST_MEMORY = 128 * MIB
LARGEST_VCPUS = 64


class Change(msgspec.Struct, kw_only=True, frozen=True):
    """What to do to a running microVM: how much memory the guest keeps (its balloon takes the rest), and the group's limits."""

    guest_memory: int
    group: Limits


def size_of(limits: Limits) -> Size:
    """The size that a microVM with these limits boots with.

    :raise Unsupported: when a Linux guest cannot live in it, or QEMU cannot offer it.
    """
    memory = DEFAULT_MEMORY if limits.memory is None else limits.memory // MIB * MIB
    if memory < SMALLEST_MEMORY:
        raise Unsupported(
            f"a microVM runs a kernel of its own and cannot live in {format_size(limits.memory or 0)} of memory",
            hint=f"give it {format_size(SMALLEST_MEMORY)} or more, or run it as a container",
            field="memory",
        )
    vcpus = 1 if limits.cpu is None else -(-limits.cpu // 1000)
    if vcpus > LARGEST_VCPUS:
        raise Unsupported(
            f"a microVM has at most {LARGEST_VCPUS} virtual processors, not {vcpus}",
            hint="ask for less cpu",
            field="cpu",
        )
    return Size(vcpus=vcpus, memory=memory)


def change(size: Size, wanted: Limits, accelerator: str) -> Change:
    """How to give *wanted* to a microVM that booted with *size*.

    :raise Unsupported: when it needs more than *size*, which only a restart can give, or less than a guest can live in.
    """
    if wanted.cpu is not None and wanted.cpu > size.vcpus * 1000:
        raise Unsupported(
            f"this microVM booted with {size.vcpus} virtual processor{'s' if size.vcpus > 1 else ''} and "
            f"cannot use {format_cpu(wanted.cpu)} cores while it runs",
            hint="restart it to boot with the new size",
            field="cpu",
        )
    if wanted.memory is not None and wanted.memory > size.memory:
        raise Unsupported(
            f"this microVM booted with {format_size(size.memory)} of memory and cannot grow to "
            f"{format_size(wanted.memory)} while it runs",
            hint="restart it to boot with the new size",
            field="memory",
        )
    kept = size_of(wanted).memory if wanted.memory is not None else size.memory
    group = group_limits(wanted, Size(vcpus=size.vcpus, memory=kept), accelerator)
    return Change(guest_memory=kept, group=group)
