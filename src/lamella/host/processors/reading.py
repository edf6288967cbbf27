"""This machine's topology, read from sysfs (Linux, Documentation/ABI/stable/sysfs-devices-system-cpu and -node)."""

from contextlib import suppress
from pathlib import Path

from lamella.model.cpulist import parse_list, parse_map
from lamella.model.topology import FULL, Cache, Cpu, HugePages, Node, Topology

SYSFS = Path("/sys/devices/system")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_topology(place: Path = SYSFS) -> Topology:
    """What the kernel tells under *place*; what it does not tell is taken for the plainest: one socket, one node, no threads."""
    online = _online(place / "cpu")
    nodes = _nodes(place / "node", online)
    near = {cpu: node.id for node in nodes for cpu in node.cpus}
    cpus = [_cpu(place / "cpu" / f"cpu{id}", id, near.get(id, 0)) for id in online]
    return Topology(cpus=cpus, caches=_caches(place / "cpu", online), nodes=nodes)


def _online(place: Path) -> list[int]:
    told = _text(place / "online")
    if told:
        return parse_list(told)
    return sorted(int(path.name[3:]) for path in place.glob("cpu[0-9]*")) or [0]


def _cpu(place: Path, id: int, node: int) -> Cpu:
    siblings = _shared(place / "topology", "thread_siblings") or [id]
    # Some firmware tells none: -1.
    return Cpu(
        id=id,
        core=min(siblings),
        package=max(0, _number(place / "topology" / "physical_package_id")),
        node=node,
        capacity=_number(place / "cpu_capacity") or FULL,
    )


def _caches(place: Path, online: list[int]) -> list[Cache]:
    found: dict[tuple[int, str, tuple[int, ...]], int] = {}
    for id in online:
        for index in sorted((place / f"cpu{id}" / "cache").glob("index[0-9]*")):
            shared = tuple(cpu for cpu in _shared(index, "shared_cpu") or [id] if cpu in online)
            found.setdefault((_number(index / "level"), _text(index / "type").lower(), shared), _size(index / "size"))
    return [
        Cache(level=level, kind=kind, size=size, cpus=list(cpus))
        for (level, kind, cpus), size in sorted(found.items(), key=lambda item: (item[0][0], item[0][2], item[0][1]))
    ]


def _nodes(place: Path, online: list[int]) -> list[Node]:
    found: list[Node] = []
    for path in sorted(place.glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        told = parse_list(_text(path / "cpulist")) or parse_map(_text(path / "cpumap"))
        found.append(
            Node(
                id=int(path.name[4:]),
                cpus=[cpu for cpu in told if cpu in online],
                memory=_memory(path / "meminfo"),
                distances=[int(word) for word in _text(path / "distance").split()],
                huge_pages=_huge_pages(path / "hugepages"),
            )
        )
    return found or [Node(id=0, cpus=online)]


def _memory(path: Path) -> int:
    """``Node 0 MemTotal: 24684080 kB``."""
    for line in _text(path).splitlines():
        words = line.split()
        if "MemTotal:" in words:
            return int(words[-2]) << 10
    return 0


def _huge_pages(place: Path) -> list[HugePages]:
    found = [
        HugePages(
            size=int(path.name.removeprefix("hugepages-").removesuffix("kB")) << 10,
            total=_number(path / "nr_hugepages"),
            free=_number(path / "free_hugepages"),
        )
        for path in place.glob("hugepages-*kB")
    ]
    return sorted(found, key=lambda pages: pages.size)


def _shared(place: Path, name: str) -> list[int]:
    """As a list where the kernel has that, else as a map: ``shared_cpu_list``, ``thread_siblings``."""
    return parse_list(_text(place / f"{name}_list")) or parse_map(_text(place / f"{name}_map") or _text(place / name))


def _size(path: Path) -> int:
    told = _text(path)
    return int(told.rstrip("KMG")) * _UNITS.get(told[-1:], 1) if told else 0


def _number(path: Path) -> int:
    return int(_text(path) or 0)


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""
