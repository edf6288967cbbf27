"""Cores of one's own, on recorded machines."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.processors.recorded_machines import NAMES, lay_out

from lamella.control.allocation import cores_of, pin, reserved, suffices
from lamella.host.processors.reading import read_topology
from lamella.model.errors import NoRoom
from lamella.model.topology import Topology


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Topology]:
    place: Path = tmp_path_factory.mktemp("machines")
    return {name: read_topology(lay_out(name, place / name)) for name in NAMES}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nobody_gets_what_another_has_nor_half_a_core(machines: dict[str, Topology], data: st.DataObject) -> None:
    topology = machines[data.draw(st.sampled_from(NAMES))]
    cores = cores_of(topology)
    keep = reserved(cores, data.draw(st.integers(0, 4)))
    taken: dict[str, tuple[int, ...]] = {}
    for number in range(data.draw(st.integers(1, 12))):
        if taken and data.draw(st.booleans()):
            del taken[data.draw(st.sampled_from(sorted(taken)))]
        wanted = data.draw(st.integers(1, 24))
        gone = keep.union(*taken.values())
        free = [core for core in cores if not gone.intersection(core.cpus)]
        try:
            got = pin(topology, taken, wanted, keep=keep)
        except NoRoom:
            assert sum(len(core.cpus) for core in free) < wanted
            continue
        assert not gone.intersection(got.cpus)
        mine = [core for core in free if set(core.cpus) & set(got.cpus)]
        assert {cpu for core in mine for cpu in core.cpus} == set(got.cpus), "half a core"
        assert wanted <= len(got.cpus) < wanted + max(len(core.cpus) for core in mine)
        assert set(got.nodes) == {core.node for core in mine}
        one_would_do = any(
            sum(len(core.cpus) for core in free if core.node == node) >= wanted for node in {c.node for c in free}
        )
        assert not one_would_do or len(got.nodes) == 1
        assert got == pin(topology, taken, wanted, keep=keep)
        taken[f"i{number}"] = got.cpus


def test_the_nodes_of_a_server_with_eight(machines: dict[str, Topology]) -> None:
    epyc = machines["epyc-7451-2s-8n"]
    # One complex of three cores below one cache.
    small = pin(epyc, {}, 6)
    caches = [cache.cpus for cache in epyc.caches if cache.level == 3]
    assert list(small.cpus) in caches
    # The node that is begun is filled first.
    second = pin(epyc, {"a": small.cpus}, 4)
    assert second.nodes == small.nodes
    # More than a node has: two of one socket.
    large = pin(epyc, {}, 20)
    assert len(large.nodes) == 2
    assert len({cpu.package for cpu in epyc.cpus if cpu.id in large.cpus}) == 1
    with pytest.raises(NoRoom, match="90 of 96 are nobody's"):
        pin(epyc, {"a": small.cpus}, 91)


def test_the_fast_cores_of_an_asymmetric_machine(machines: dict[str, Topology]) -> None:
    phone = machines["phone-8-asymmetric"]
    speed = {cpu.id: cpu.capacity for cpu in phone.cpus}
    first = pin(phone, {}, 1)
    assert [speed[cpu] for cpu in first.cpus] == [1024]
    # What stays the host's are the slow ones.
    kept = reserved(cores_of(phone), 2)
    assert {speed[cpu] for cpu in kept} == {280}
    rest = pin(phone, {"a": first.cpus}, 4, keep=kept)
    assert {speed[cpu] for cpu in rest.cpus} == {855}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_who_has_enough_and_no_core_to_spare_stays(machines: dict[str, Topology], data: st.DataObject) -> None:
    topology = machines[data.draw(st.sampled_from(NAMES))]
    wanted = data.draw(st.integers(1, len(topology.cpus)))
    own = pin(topology, {}, wanted).cpus
    assert suffices(topology, own, wanted)
    assert not suffices(topology, own, len(own) + 1)
    cores = {cpu.core for cpu in topology.cpus if cpu.id in own}
    smallest = min(sum(cpu.core == core for cpu in topology.cpus) for core in cores)
    assert not suffices(topology, own, len(own) - smallest)
    assert not suffices(topology, (), wanted) and suffices(None, own, len(own))
