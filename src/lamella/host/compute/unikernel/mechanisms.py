"""What isolates a running unikernel, beyond what isolates every QEMU: read from it."""

from lamella.model.contract import LIMIT, Mechanism
from lamella.model.quantity import format_size


def of_machine(*, kvm: bool, memory: int, vcpus: int) -> list[Mechanism]:
    """What QEMU says of the machine."""
    return [
        Mechanism(
            name="kernel", value="its own: the application is the kernel", evidence="QEMU's -kernel", in_force=True
        ),
        Mechanism(
            name="processor",
            value=f"{vcpus} virtual, {'by hardware virtualization' if kvm else 'emulated by QEMU (TCG)'}",
            evidence="QMP query-kvm, query-cpus-fast",
        ),
        Mechanism(name=f"{LIMIT}memory", value=format_size(memory), evidence="QMP query-memory-size-summary"),
        Mechanism(name=f"{LIMIT}pids", value="it has no processes", evidence="QEMU's -kernel"),
    ]


def of_disks(sizes: dict[str, int]) -> list[Mechanism]:
    """Its disks, bytes by name."""
    if not sizes:
        return [Mechanism(name=f"{LIMIT}disk", value="it has no disk", evidence="QMP query-block")]
    value = ", ".join(f"{name} {format_size(size)}" for name, size in sorted(sizes.items()))
    return [Mechanism(name=f"{LIMIT}disk", value=value, evidence="the sizes of its disks")]
