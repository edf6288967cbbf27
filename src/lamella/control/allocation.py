"""Which cores an instance gets for itself: a pure function of what the machine has and who has what.

Whole cores, all their threads, go to one instance: two that do not trust each other never share one, whose caches and predictors tell of
both. They are chosen, in this order: on as few nodes as can be, so that memory is near; on nodes near each other; the fastest; on the node
that has the least room left where it fits, so that large ones find room later; below as few last-level caches as can be.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from lamella.model.errors import NoRoom
from lamella.model.topology import Topology

# A distance for nodes whose firmware tells none: its own node is 10 (ACPI, SLIT).
_OWN, _OTHER = 10, 20


class Core(msgspec.Struct, kw_only=True, frozen=True):
    """All ``cpus`` of one core, the lowest first. ``cache`` tells the last-level caches apart."""

    cpus: tuple[int, ...]
    package: int
    node: int
    cache: int
    capacity: int


class Pinned(msgspec.Struct, kw_only=True, frozen=True):
    """The ``cpus`` that an instance has for itself, and the ``nodes`` that its memory is to come from."""

    cpus: tuple[int, ...]
    nodes: tuple[int, ...]


def cores_of(topology: Topology) -> list[Core]:
    """In the order of their lowest CPU."""
    last = max((cache.level for cache in topology.caches), default=0)
    below = {cpu: min(cache.cpus) for cache in topology.caches if cache.level == last for cpu in cache.cpus}
    made: list[Core] = []
    for first in topology.cpus:
        if first.id == first.core:
            threads = tuple(cpu.id for cpu in topology.cpus if cpu.core == first.id)
            made.append(
                Core(
                    cpus=threads,
                    package=first.package,
                    node=first.node,
                    cache=below.get(first.id, first.id),
                    capacity=first.capacity,
                )
            )
    return made


def suffices(topology: Topology | None, cpus: Collection[int], wanted: int) -> bool:
    """Whether who has *cpus* for itself has *wanted* of them, and no whole core to spare: then it stays where it is."""
    own = {cpu.id: cpu.core for cpu in topology.cpus if cpu.id in cpus} if topology is not None else {}
    sizes = [sum(core == one for core in own.values()) for one in set(own.values())]
    return len(cpus) >= wanted > len(cpus) - min(sizes, default=1)


def reserved(cores: Sequence[Core], cpus: int) -> frozenset[int]:
    """The CPUs that stay the host's own: of whole cores, at least *cpus* of them; the slowest, and of those the first."""
    kept: list[int] = []
    for core in sorted(cores, key=lambda core: (core.capacity, core.cpus)):
        if len(kept) >= cpus:
            break
        kept += core.cpus
    return frozenset(kept)


def pin(
    topology: Topology, taken: Mapping[str, Iterable[int]], wanted: int, *, keep: frozenset[int] = frozenset()
) -> Pinned:
    """*wanted* CPUs of whole cores that nobody has; the same for the same arguments. *taken* are those of each instance, *keep* what stays
    the host's.

    :raise NoRoom: when there are not so many; it says how many there are.
    """
    gone = keep.union(*taken.values())
    free = [core for core in cores_of(topology) if not gone.intersection(core.cpus)]
    there = sum(len(core.cpus) for core in free)
    if there < wanted:
        raise NoRoom(
            f"{wanted} CPUs are asked for, and {there} of {len(topology.cpus)} are nobody's",
            hint="fewer, or without a core of its own" if there else "without a core of its own",
        )
    chosen: list[Core] = []
    for node in _nodes(topology, free, wanted):
        mine = [core for core in free if core.node == node]
        chosen += _cores(mine, wanted - sum(len(core.cpus) for core in chosen))
    cpus = [cpu for core in chosen for cpu in core.cpus]
    return Pinned(cpus=tuple(sorted(cpus)), nodes=tuple(sorted({core.node for core in chosen})))


def _nodes(topology: Topology, free: Sequence[Core], wanted: int) -> list[int]:
    """The nodes to take from, the first the most."""
    room: dict[int, int] = {}
    for core in free:
        room[core.node] = room.get(core.node, 0) + len(core.cpus)
    fitting = [node for node, cpus in room.items() if cpus >= wanted]
    if fitting:
        return [min(fitting, key=lambda node: (_slowness(free, node, wanted), room[node], node))]
    far = _distances(topology)
    # Of each node and those nearest to it, the fewest; of as many, the nearest.
    ways: list[tuple[int, int, list[int]]] = []
    for first in sorted(room):
        way, left = [first], wanted - room[first]
        for other in sorted(room, key=lambda node: (far.get((first, node), _OTHER), -room[node], node)):
            if left <= 0:
                break
            if other != first:
                way.append(other)
                left -= room[other]
        ways.append((len(way), sum(far.get((first, node), _OTHER) for node in way), way))
    return min(ways)[2]


def _slowness(free: Sequence[Core], node: int, wanted: int) -> int:
    """How much slower than the fastest the slowest is that *wanted* CPUs of *node* would have."""
    chosen = _cores([core for core in free if core.node == node], wanted)
    return max(core.capacity for core in free) - min(core.capacity for core in chosen)


def _distances(topology: Topology) -> dict[tuple[int, int], int]:
    """Between nodes; where none is told, nodes of one socket are nearer to each other than to those of others."""
    told = {
        (node.id, other.id): distance
        for node in topology.nodes
        for other, distance in zip(topology.nodes, node.distances, strict=False)
    }
    sockets = {cpu.node: cpu.package for cpu in topology.cpus}
    for node in topology.nodes:
        for other in topology.nodes:
            near = sockets.get(node.id) == sockets.get(other.id)
            told.setdefault((node.id, other.id), _OWN if node is other else _OTHER - 4 if near else _OTHER)
    return told


def _cores(mine: Sequence[Core], wanted: int) -> list[Core]:
    """Of one node's: the fastest, and of those that are as fast the ones below the fewest caches."""
    if wanted <= 0:
        return []
    chosen: list[Core] = []
    for capacity in sorted({core.capacity for core in mine}, reverse=True):
        as_fast = [core for core in mine if core.capacity == capacity]
        while as_fast and (left := wanted - sum(len(core.cpus) for core in chosen)) > 0:
            caches: dict[int, list[Core]] = {}
            for core in as_fast:
                caches.setdefault(core.cache, []).append(core)
            # The smallest that has enough; where none has, the largest.
            sizes = {cache: sum(len(core.cpus) for core in cores) for cache, cores in caches.items()}
            enough = [cache for cache, size in sizes.items() if size >= left]
            best = (
                min(enough, key=lambda cache: (sizes[cache], cache))
                if enough
                else max(caches, key=lambda cache: (sizes[cache], -cache))
            )
            for core in caches[best]:
                if left > 0:
                    chosen.append(core)
                    as_fast.remove(core)
                    left -= len(core.cpus)
    return chosen
