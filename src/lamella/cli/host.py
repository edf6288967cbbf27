"""``host topology``: where a host's processors are, below which caches, and near which memory."""

from typing import cast

from lamella.cli import output
from lamella.cli.document import Document
from lamella.cli.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from lamella.cli.parser import Command, Options, Parser
    from lamella.model.topology import Cpu, Node, Topology


def topology_options(parser: "Parser") -> None:
    parser.positional("name", nargs="?", help="its name or id; the only one there is, when none is given")
    parser.output()


def topology(options: "Options") -> int:
    import msgspec

    from lamella.model.errors import Conflict, Unsupported
    from lamella.model.topology import Topology

    session = Session(options)
    if options.name:
        found = session.get("host", options.name)
    else:
        hosts, _ = session.find("host", {})
        if len(hosts) != 1:
            raise Conflict(f"there are {len(hosts)} hosts", hint="lamella host topology NAME")
        found = hosts[0]
    told = found.at("status", "topology")
    if told is None:
        raise Unsupported(f"host {found.text('name')} has not told its topology", hint="it does when it starts anew")
    if options.output != "table":
        output.show([Document(told)], options.output, [("NAME", lambda _: found.text("name"))], one=True)
        return 0
    for text in picture(found.text("name"), msgspec.convert(told, Topology)):
        output.line(text)
    for text in pinned(session, found.text("id")):
        output.line(text)
    return 0


def pinned(session: Session, host: str) -> "Iterable[str]":
    """Who of the project has cores of its own there."""
    from lamella.model.cpulist import format_list

    instances, _ = session.find("instance", {})
    for instance in instances:
        cpus = instance.at("status", "cpus")
        if cpus and isinstance(cpus, list) and instance.text("status", "host") == host:
            yield f"CPUs {format_list(cast('list[int]', cpus))} are {output.clean(instance.text('name'))}'s own"


def picture(name: str, topology: "Topology") -> "list[str]":
    """Lines: the whole, then socket by socket, node by node, and below each last-level cache its cores with their threads."""
    nodes = [node for node in topology.nodes if node.cpus]
    packages = sorted({cpu.package for cpu in topology.cpus})
    cores = len({cpu.core for cpu in topology.cpus})
    counts = [(len(packages), "socket"), (cores, "core"), (len(topology.cpus), "thread"), (len(nodes), "NUMA node")]
    lines = [f"{output.clean(name)}: " + ", ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in counts)]
    for package in packages:
        lines.append(f"socket {package}")
        of_package = [cpu for cpu in topology.cpus if cpu.package == package]
        for node in nodes:
            here = [cpu for cpu in of_package if cpu.node == node.id]
            if here:
                lines.append("  " + _node(node))
                lines += [f"    {text}" for text in _groups(topology, here)]
    lines += [f"{_node(node)}, no processors" for node in topology.nodes if not node.cpus]
    return lines


def _node(node: "Node") -> str:
    from lamella.model.quantity import format_size

    text = f"node {node.id}"
    if node.memory:
        text += f"  {format_size(node.memory)}"
    for pages in node.huge_pages:
        if pages.total:
            text += f"  {pages.total} pages of {format_size(pages.size)}, {pages.free} free"
    far = [f"{other}: {distance}" for other, distance in enumerate(node.distances) if other != node.id]
    return f"{text}  distance to {', '.join(far)}" if far else text


def _groups(topology: "Topology", here: "list[Cpu]") -> "Iterable[str]":
    from lamella.model.quantity import format_size

    last = max((cache.level for cache in topology.caches), default=0)
    mine = {cpu.id for cpu in here}
    shared = [cache for cache in topology.caches if cache.level == last and cache.kind != "instruction"]
    left = list(here)
    for cache in shared:
        below = [cpu for cpu in left if cpu.id in cache.cpus]
        if mine.intersection(cache.cpus) and below:
            size = f" {format_size(cache.size)}" if cache.size else ""
            yield f"L{cache.level}{size}  {_cores(below)}"
            left = [cpu for cpu in left if cpu not in below]
    if left:
        yield _cores(left)


def _cores(cpus: "list[Cpu]") -> str:
    """Those of each speed, the fastest first."""
    from lamella.model.cpulist import format_list
    from lamella.model.topology import FULL

    texts: list[str] = []
    for capacity in sorted({cpu.capacity for cpu in cpus}, reverse=True):
        as_fast = [cpu for cpu in cpus if cpu.capacity == capacity]
        cores = sorted({cpu.core for cpu in as_fast})
        speed = "" if capacity == FULL else f" at {capacity / FULL:.2f} of the fastest"
        texts.append(
            f"{len(cores)} core{'s' * (len(cores) != 1)}{speed}, CPUs {format_list(cpu.id for cpu in as_fast)}"
        )
    return "; ".join(texts)


COMMANDS: "dict[str, Command]" = {"host topology": (topology_options, topology)}
