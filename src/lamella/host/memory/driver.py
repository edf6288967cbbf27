"""What a driver does whose instances give memory back while they run, and what it tells of one."""

from typing import Protocol, runtime_checkable

import msgspec


class Held(msgspec.Struct, kw_only=True, frozen=True):
    """The memory of one instance now, in bytes.

    ``held`` is what it may touch, ``ceiling`` the most that it was given, ``resident`` what that takes of the host, QEMU's own included,
    page cache that the host's kernel could take at any time not.
    ``used`` is what it says it cannot do without; ``None``, with the sentence ``silent``, when it says nothing. ``said`` tells one saying
    from the next. ``waited`` counts seconds, or major faults of a guest (``unit``), since its start: what it lost to too little memory.
    ``means`` is how memory is taken from it. With ``balloon`` only the guest can give memory up, and takes time to; else the host's kernel
    takes it.
    """

    held: int
    ceiling: int
    resident: int
    used: int | None = None
    silent: str = ""
    said: int = 0
    waited: float = 0.0
    unit: str = "s"
    balloon: bool = False
    means: str = ""
    evidence: str = ""


@runtime_checkable
class GivesMemory(Protocol):
    """A driver whose running instances can be asked to do with less memory, and be given it again."""

    async def memory_held(self, id: str) -> Held | None:
        """What *id* has; ``None`` when it does not run, or has nothing by which memory could be taken from it."""
        ...

    async def hold_memory(self, id: str, target: int, floor: int) -> bool:
        """Have it do with *target* bytes, never more than its ceiling. What it made of that is seen later.

        *floor* is what the kernel spares when the host runs short, where it can. False when it was not asked: another verb changes it, or
        it does not run.
        """
        ...
