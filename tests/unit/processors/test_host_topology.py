"""What a person is shown of recorded machines."""

from pathlib import Path

from tests.unit.processors.recorded_machines import lay_out

from lamella.cli.host import picture
from lamella.host.processors.reading import read_topology
from lamella.model.topology import Cache, Cpu, HugePages, Node, Topology


def test_a_server_with_two_sockets_and_eight_nodes(tmp_path: Path) -> None:
    lines = picture("alpha", read_topology(lay_out("epyc-7451-2s-8n", tmp_path)))
    assert lines[:5] == [
        "alpha: 2 sockets, 48 cores, 96 threads, 8 NUMA nodes",
        "socket 0",
        "  node 0",
        "    L3 8MiB  3 cores, CPUs 0-2,48-50",
        "    L3 8MiB  3 cores, CPUs 3-5,51-53",
    ]
    assert lines.count("    L3 8MiB  3 cores, CPUs 0-2,48-50") == 1 and len(lines) == 1 + 2 + 8 + 16


def test_fast_and_slow_cores_and_a_node_without_any(tmp_path: Path) -> None:
    phone = picture("pocket", read_topology(lay_out("phone-8-asymmetric", tmp_path / "a")))
    assert any("at 0.27 of the fastest" in line for line in phone)
    power = picture("old", read_topology(lay_out("power7-smt4", tmp_path / "b")))
    assert power[0] == "old: 1 socket, 16 cores, 64 threads, 1 NUMA node"
    assert power[-1] == "node 1, no processors"


def test_memory_huge_pages_and_distances() -> None:
    cpus = [Cpu(id=0, core=0), Cpu(id=1, core=1, package=1, node=1)]
    pages = [HugePages(size=2 << 20, total=512, free=500), HugePages(size=1 << 30, total=0, free=0)]
    nodes = [
        Node(id=0, cpus=[0], memory=64 << 30, distances=[10, 21], huge_pages=pages),
        Node(id=1, cpus=[1], memory=64 << 30, distances=[21, 10]),
    ]
    caches = [Cache(level=2, kind="unified", size=1 << 20, cpus=[0])]
    assert picture("one\n", Topology(cpus=cpus, caches=caches, nodes=nodes)) == [
        "one : 2 sockets, 2 cores, 2 threads, 2 NUMA nodes",
        "socket 0",
        "  node 0  64GiB  512 pages of 2MiB, 500 free  distance to 1: 21",
        "    L2 1MiB  1 core, CPUs 0",
        "socket 1",
        "  node 1  64GiB  distance to 0: 21",
        "    1 core, CPUs 1",
    ]
