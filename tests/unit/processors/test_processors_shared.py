"""How processors are shared out, and what is written of it: pure, and on plain files that stand for trees this machine lacks."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Home
from lamella.host.linux.cgroup_seat import Group, Seat, shares, weights
from lamella.host.linux.processes import threads_outside
from lamella.host.processors.sharing import Promise, share_out
from lamella.host.processors.wing import Processors, promise_of
from lamella.model.assignment import Assignment
from lamella.model.instance import InstanceSpec, InstanceStatus, Power, Priority
from lamella.model.resource import new_resource


@st.composite
def hosts(draw: st.DrawFn):
    """Some CPUs, and promises that admission would make: no more than there is, each core to one."""
    count = draw(st.integers(2, 64))
    left = list(range(1, count))
    promises: list[Promise] = []
    for number in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["none", "guarantee", "pin"]))
        free = 1000 * (count - sum(len(one.cpus) for one in promises)) - sum(one.guarantee for one in promises)
        if kind == "pin" and left and free >= 2000:
            own = (left.pop(draw(st.integers(0, len(left) - 1))),)
            promises.append(Promise(id=f"i{number}", cpus=own, nodes=(0,)))
        else:
            guarantee = draw(st.integers(1, free)) if kind == "guarantee" and free else 0
            promises.append(
                Promise(id=f"i{number}", guarantee=guarantee, priority=draw(st.sampled_from(list(Priority))))
            )
    return list(range(count)), promises, draw(st.sets(st.sampled_from(["shims", "storage", "network"])))


@given(hosts())
def test_under_full_contention_everybody_has_its_guarantee_and_pinned_cores_are_alone(host) -> None:
    cpus, promises, own = host
    made = share_out(promises, own, cpus)
    seats = made.seats
    assert seats.keys() == {one.id for one in promises} | own
    pinned = [cpu for one in promises for cpu in one.cpus]
    assert len(pinned) == len(set(pinned))
    for one in promises:
        if one.cpus:
            assert seats[one.id].cpus == one.cpus and seats[one.id].nodes == one.nodes
    shared = {name: seat for name, seat in seats.items() if not any(one.id == name and one.cpus for one in promises)}
    for seat in shared.values():
        assert seat.cpus is None if not pinned else seat.cpus and not set(seat.cpus) & set(pinned)
    if not any(one.guarantee for one in promises):
        assert all(seat.weight is None for seat in seats.values()) and made.whole.weight is None
        return
    whole = sum(seat.weight or 0 for seat in shared.values())
    room = 1000 * (len(cpus) - len(pinned))
    assert whole <= room
    for one in promises:
        if one.guarantee:
            # Its part of all weights, of all that there is.
            assert (seats[one.id].weight or 0) * room >= one.guarantee * whole


def test_what_is_left_goes_by_priority_and_to_the_layer_itself() -> None:
    promises = [
        Promise(id="web", guarantee=1000),
        Promise(id="high", priority=Priority.HIGH),
        Promise(id="low", priority=Priority.LOW),
        Promise(id="plain"),
    ]
    seats = share_out(promises, {"shims"}, [0, 1]).seats
    weight = {name: seat.weight for name, seat in seats.items()}
    assert weight == {"web": 1000, "high": 640, "low": 40, "plain": 160, "shims": 160}
    assert shares(1000) == 1024 and weights(1000) == 100
    assert shares(None) == 1024 and weights(None) == 100
    assert shares(0) == 2 and weights(0) == 1
    assert shares(10**9) == 262_144 and weights(10**9) == 10_000


@pytest.mark.parametrize("version", [1, 2])
def test_a_seat_is_written_read_back_and_taken_away(tmp_path: Path, version: int) -> None:
    trees = {"": tmp_path} if version == 2 else {"cpu": tmp_path / "cpu", "cpuset": tmp_path / "cpuset"}
    group = {"cpu.weight": "100", "cpu.shares": "1024", "cpuset.cpus": "" if version == 2 else "0-7", "cpuset.mems": ""}
    for tree in trees.values():
        (tree / "web").mkdir(parents=True)
        (tree / "cpuset.cpus").write_text("0-7\n")
        (tree / "cpuset.mems").write_text("0-1\n")
        for name, text in group.items():
            (tree / "web" / name).write_text(text)
    found = Group.find(version, trees, "web")
    found.take(Seat(weight=2500, cpus=(2, 3, 4, 7), nodes=(1,)))
    cpu, cpuset = (trees[""], trees[""]) if version == 2 else (trees["cpu"], trees["cpuset"])
    assert (cpu / "web" / found.weight_file).read_text() == ("250" if version == 2 else "2560")
    assert (cpuset / "web" / "cpuset.cpus").read_text() == "2-4,7"
    assert (cpuset / "web" / "cpuset.mems").read_text() == "1"
    if version == 1:
        held = found.read()
        assert (held.weight, held.cpus, held.nodes) == (2560, [2, 3, 4, 7], [1])
    found.take(Seat())
    assert (cpu / "web" / found.weight_file).read_text() == ("100" if version == 2 else "1024")
    # Nothing in it is the parent's in version 2; in version 1 the parent's is written out.
    assert (cpuset / "web" / "cpuset.cpus").read_text() == ("\n" if version == 2 else "0-7")
    Group.find(version, trees, "gone").take(Seat(weight=1000, cpus=(1,)))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to tell apart")
async def test_each_virtual_processor_has_a_cpu_of_its_own(tmp_path: Path) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    status = InstanceStatus(cpus=[first, second], nodes=[0])
    instance = new_resource("instance", "web", InstanceSpec(image="x", cpu=2000, cpu_pin=True), status)
    wing = Processors(Home(tmp_path, f"lamella-test-{os.getpid()}-none"))
    await wing.use([Assignment(revision=1, instance=instance)])
    sleepers = [subprocess.Popen(["sleep", "100"]) for _ in range(3)]
    try:
        await wing.spread(instance.id, [one.pid for one in sleepers])
        assert [os.sched_getaffinity(one.pid) for one in sleepers] == [{first}, {second}, {first}]
        assert threads_outside(sleepers[0].pid, [sleepers[0].pid, 1 << 30]) == [sleepers[0].pid]
    finally:
        for one in sleepers:
            one.kill()
            one.wait()
    instance.spec.power = Power.STOPPED
    assert promise_of(Assignment(revision=2, instance=instance)) == Promise(id=instance.id)
