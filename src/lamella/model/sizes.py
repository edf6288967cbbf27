"""How large an instance is that was asked for without a size. Containers and modules have no size of their own: the host's is theirs."""

from lamella.model.instance import Isolation

MIB = 1 << 20

# Bytes of memory of each level that is a machine of its own: a guest has them, whatever it uses.
DEFAULT_MEMORY = {
    Isolation.MICROVM: 512 * MIB,
    Isolation.UNIKERNEL: 64 * MIB,
    Isolation.VM: 1024 * MIB,
    Isolation.CONFIDENTIAL: 1024 * MIB,
}
# Milli-cores of a guest: one virtual processor.
DEFAULT_CPU = 1000
