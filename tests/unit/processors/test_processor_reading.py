"""Recorded machines that no machine here is, and this one."""

import os
from pathlib import Path

import pytest
from tests.unit.processors.recorded_machines import NAMES, lay_out

from lamella.host.processors.reading import read_topology

# CPUs, cores, sockets, nodes that have CPUs, last-level caches.
SHAPES = {
    "epyc-7451-2s-8n": (96, 48, 2, 8, 16),
    "i7-1165g7": (8, 4, 1, 1, 1),
    "opteron-6328": (16, 8, 2, 4, 4),
    "phone-8-asymmetric": (8, 8, 3, 1, 1),
    "power7-smt4": (64, 16, 1, 1, 16),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_machine_is_what_it_was(name: str, tmp_path: Path) -> None:
    found = read_topology(lay_out(name, tmp_path))
    last = max(cache.level for cache in found.caches)
    assert (
        len(found.cpus),
        len({cpu.core for cpu in found.cpus}),
        len({cpu.package for cpu in found.cpus}),
        len([node for node in found.nodes if node.cpus]),
        len([cache for cache in found.caches if cache.level == last and cache.kind in ("unified", "data")]),
    ) == SHAPES[name]
    assert sorted(cpu for node in found.nodes for cpu in node.cpus) == [cpu.id for cpu in found.cpus]


def test_threads_caches_and_speeds(tmp_path: Path) -> None:
    epyc = read_topology(lay_out("epyc-7451-2s-8n", tmp_path / "epyc"))
    assert epyc.cpus[49].core == 1 and epyc.cpus[49].node == epyc.cpus[1].node
    assert {cache.size for cache in epyc.caches if cache.level == 3} == {8 << 20}
    phone = read_topology(lay_out("phone-8-asymmetric", tmp_path / "phone"))
    assert [cpu.capacity for cpu in phone.cpus].count(1024) == 1
    assert min(cpu.capacity for cpu in phone.cpus) == 280


def test_this_machine() -> None:
    found = read_topology()
    assert len(found.cpus) == os.sysconf("SC_NPROCESSORS_ONLN")
    memory = sum(node.memory for node in found.nodes)
    assert 0 < memory <= 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_kernel_that_tells_nothing_and_one_with_a_cpu_that_is_off(tmp_path: Path) -> None:
    plain = read_topology(tmp_path)
    assert [cpu.id for cpu in plain.cpus] == [0] and plain.nodes[0].cpus == [0] and plain.caches == []
    lay_out("i7-1165g7", tmp_path)
    (tmp_path / "cpu" / "online").write_text("0-3,5-7\n")
    found = read_topology(tmp_path)
    assert 4 not in [cpu.id for cpu in found.cpus]
    assert all(4 not in cache.cpus for cache in found.caches) and 4 not in found.nodes[0].cpus
