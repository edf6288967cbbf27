"""What a host may promise: never more than it has, and a refusal says what would fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.control import capacity
from lamella.control.admission import check_spec
from lamella.control.placement import place
from lamella.control.shares import NOTHING, Share, check_shares, counts, share_of
from lamella.model.errors import Invalid, NoRoom
from lamella.model.host import Capability, HostSpec, HostStatus, Overcommit, Reserve
from lamella.model.instance import InstanceSpec, InstanceStatus, Isolation, Phase, Power, RestartMode, RestartPolicy
from lamella.model.resource import new_resource, now
from lamella.model.topology import Cpu, HugePages, Node, Topology

GIB = 1 << 30
NO_RESERVE, TWICE = Reserve(), Overcommit(cpu=2, memory=1.5)


def a_host(name="alpha", *, cpu=4000, memory=16 * GIB, reserve=NO_RESERVE, overcommit=TWICE):
    capabilities = [Capability(name=f"compute.{level}", available=True) for level in Isolation]
    status = HostStatus(phase="ready", cpu=cpu, memory=memory, capabilities=capabilities)
    return new_resource("host", name, HostSpec(reserve=reserve, overcommit=overcommit), status)


def an_instance(host, **fields):
    status = InstanceStatus(host=host.id)
    return new_resource("instance", "web", InstanceSpec(image="x", **fields), status)


asked = st.builds(
    dict,
    isolation=st.sampled_from([Isolation.CONTAINER, Isolation.MICROVM, Isolation.VM]),
    cpu=st.none() | st.integers(1, 4).map(lambda cores: cores * 1000),
    memory=st.none() | st.integers(1, 6).map(lambda gib: gib * GIB),
    cpu_guarantee=st.none() | st.integers(0, 4000),
    memory_guarantee=st.none() | st.integers(0, 6 * GIB),
    cpu_pin=st.booleans(),
)


@given(st.lists(asked, max_size=12), st.integers(0, 2000), st.integers(0, 4).map(lambda gib: gib * GIB))
def test_whoever_is_let_in_never_makes_it_promise_more_than_it_has(wishes, cpu: int, memory: int) -> None:
    host = a_host(reserve=Reserve(cpu=cpu, memory=memory))
    there = []
    for wish in wishes:
        one = an_instance(host, **wish)
        try:
            check_spec(one.spec)
            capacity.check(host, there, one)
        except Invalid:
            continue
        except NoRoom as refused:
            # The refusal was true: with it, more would be promised than there is.
            whole = capacity.taken(host, [*there, one])
            bounds = capacity.bounds_of(host)
            assert any(getattr(whole, name) > getattr(bounds, name) for name in Share.__struct_fields__)
            assert refused.field in ("spec.cpu", "spec.memory", "spec.cpu_guarantee", "spec.memory_guarantee")
            assert "left" in refused.message and refused.hint
            continue
        there.append(one)
    given_out = capacity.taken(host, there)
    assert given_out.cpu_guarantee <= 4000 - cpu and given_out.memory_guarantee <= 16 * GIB - memory
    assert given_out.cpu <= 2 * (4000 - cpu) and given_out.memory <= 1.5 * (16 * GIB - memory)


def test_a_refusal_says_what_is_left_and_what_would_fit() -> None:
    host = a_host(reserve=Reserve(cpu=500))
    there = [an_instance(host, cpu_guarantee=2500)]
    with pytest.raises(NoRoom) as refused:
        capacity.check(host, there, an_instance(host, cpu_guarantee=2000))
    assert refused.value.message == "host alpha has 1 of 3.5 guaranteed cores left, and 2 are asked for"
    assert "--cpu-guarantee 1 would fit" in refused.value.hint and refused.value.field == "spec.cpu_guarantee"
    capacity.check(host, there, an_instance(host, cpu_guarantee=1000))
    with pytest.raises(NoRoom) as refused:
        capacity.check(host, there, an_instance(host, cpu=2000, cpu_pin=True))
    assert refused.value.hint.startswith("--cpu 1 would fit")
    with pytest.raises(NoRoom, match="24GiB memory as ceilings left, and 25GiB"):
        capacity.check(host, there, an_instance(host, memory=25 * GIB))
    # A guest's memory is real, also when nobody said how much.
    many = [an_instance(host, isolation=Isolation.VM) for _ in range(24)]
    with pytest.raises(NoRoom, match="0B of 24GiB"):
        capacity.check(host, many, an_instance(host, isolation=Isolation.VM))
    capacity.check(host, many, an_instance(host))


def test_what_does_not_grow_is_never_refused_and_who_rests_takes_nothing() -> None:
    host = a_host()
    there = [an_instance(host, cpu_guarantee=4000), an_instance(host, cpu_guarantee=4000)]
    shrunk = an_instance(host, cpu_guarantee=1000)
    capacity.check(host, there, shrunk, Share(cpu_guarantee=2000))
    with pytest.raises(NoRoom, match="0 of 4"):
        capacity.check(host, there, shrunk, NOTHING)
    for one in there:
        one.spec.power = Power.STOPPED
    assert capacity.taken(host, there) == NOTHING
    ended = an_instance(host, cpu=1000)
    ended.spec.epoch = ended.status.epoch = 1
    assert counts(ended)
    ended.status.phase = Phase.STOPPED
    assert not counts(ended)
    ended.spec.restart = RestartPolicy(mode=RestartMode.ALWAYS)
    assert counts(ended)
    ended.deleted_at = now()
    assert not counts(ended)


def test_a_host_that_told_nothing_bounds_nothing() -> None:
    host = a_host(cpu=0, memory=0)
    capacity.check(host, [], an_instance(host, cpu_guarantee=1_000_000, memory=1 << 50))
    assert capacity.lines(host, []) == []


def test_placement_prefers_whoever_has_room_and_says_what_each_lacks() -> None:
    small, large = a_host("small", cpu=1000), a_host("large", cpu=8000)
    spec = InstanceSpec(image="x", cpu_guarantee=2000)
    short = {small.id: capacity.shortage(small, NOTHING, share_of(spec))}
    chosen = place(spec, [small, large], {large.id: 5}, short)
    assert chosen.host.name == "large" and "has room" in chosen.because
    short[large.id] = capacity.shortage(large, Share(cpu_guarantee=7000), share_of(spec))
    with pytest.raises(NoRoom, match=r"host small has 1 of 1 .*; host large has 1 of 8"):
        place(spec, [small, large], {}, short)


def test_the_contract_tells_what_its_host_has_promised() -> None:
    host = a_host(reserve=Reserve(cpu=1000))
    cores, memory = capacity.lines(host, [an_instance(host, cpu=3000, cpu_guarantee=1500, memory=8 * GIB)])
    assert cores.value == "1.5 of 3 guaranteed (0.50), ceilings of 3 handed out (1.00 times, 2 at most)"
    assert memory.value == "0B of 16GiB guaranteed (0.00), ceilings of 8GiB handed out (0.50 times, 1.5 at most)"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cpu": 1000, "cpu_guarantee": 1500}, "1.5 cores cannot be guaranteed to what has 1 at most"),
        ({"cpu_guarantee": 1500, "isolation": Isolation.MICROVM}, "what has 1 at most"),
        ({"memory": GIB, "memory_guarantee": 2 * GIB}, "2GiB of memory cannot be guaranteed"),
        ({"memory_guarantee": 2 * GIB, "isolation": Isolation.VM}, "what has 1GiB at most"),
        ({"cpu_pin": True}, "not how many"),
        ({"cpu_pin": True, "cpu": 1500}, "only whole ones"),
    ],
)
def test_guarantees_that_make_no_sense_are_refused(fields, words: str) -> None:
    with pytest.raises(Invalid, match=words) as refused:
        check_shares(InstanceSpec(image="x", **fields))
    assert refused.value.hint


def test_a_machine_s_image_may_have_a_size_of_its_own() -> None:
    check_spec(InstanceSpec(image="x", isolation=Isolation.VM, memory_guarantee=2 * GIB))


def test_huge_pages_are_not_handed_out_as_ordinary_memory() -> None:
    host = a_host()
    nodes = [Node(id=0, cpus=[0], huge_pages=[HugePages(size=2 << 20, total=0, free=0)])]
    host.status.topology = Topology(cpus=[Cpu(id=0, core=0)], caches=[], nodes=nodes)
    host.spec.huge_pages = {"2MiB": 4096}
    assert capacity.bounds_of(host).memory_guarantee == 8 * GIB
    assert share_of(InstanceSpec(image="x", isolation=Isolation.VM, memory=GIB, huge_pages=2 << 20)) == Share()
