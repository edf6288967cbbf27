"""A host's processors, caches and memory, as its kernel tells them (Linux, Documentation/admin-guide/cputopology.rst)."""

import msgspec

# What a core does at most, of the fastest of its host (``cpu_capacity``); all of them where the kernel says nothing.
FULL = 1024


class Cpu(msgspec.Struct, kw_only=True, frozen=True):
    """One that the scheduler knows. ``core`` is the lowest of those that share its core, ``package`` the socket, ``node`` where its
    memory is near. ``capacity`` is of 1024."""

    id: int
    core: int
    package: int = 0
    node: int = 0
    capacity: int = FULL


class Cache(msgspec.Struct, kw_only=True, frozen=True):
    """``kind`` is ``unified``, ``data`` or ``instruction``; ``size`` bytes, 0 when it is not told. *cpus* share it."""

    level: int
    kind: str
    size: int
    cpus: list[int]


class HugePages(msgspec.Struct, kw_only=True, frozen=True):
    """Pages of ``size`` bytes that are set apart, and how many of them nobody uses."""

    size: int
    total: int
    free: int


class Node(msgspec.Struct, kw_only=True, frozen=True):
    """A NUMA node. ``memory`` is bytes, 0 when it is not told; ``distances`` are those to the nodes, in their order, its own 10."""

    id: int
    cpus: list[int]
    memory: int = 0
    distances: list[int] = []
    huge_pages: list[HugePages] = []


class Topology(msgspec.Struct, kw_only=True, frozen=True):
    """What is online, in the order of the ids."""

    cpus: list[Cpu]
    caches: list[Cache]
    nodes: list[Node]
