"""Sizes that machines start with, grow to and shrink to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Limits
from lamella.host.compute.qemu.size import MIB, OVERHEAD, THREADS, Size
from lamella.host.compute.vm import sizing
from lamella.host.compute.vm.sizing import Current, change, largest_of, size_of
from lamella.model.errors import Unsupported

GIB = 1 << 30
limits = st.builds(Limits, cpu=st.integers(10, 64_000) | st.none(), memory=st.integers(32 * MIB, 64 * GIB) | st.none())


def test_a_machine_that_asks_for_nothing_has_one_vcpu_and_a_gibibyte() -> None:
    assert size_of(Limits()) == Size(vcpus=1, memory=GIB)


@given(limits)
def test_a_machine_gets_what_it_asks_for_in_whole_blocks(asked: Limits) -> None:
    size = size_of(asked)
    assert asked.cpu is None or size.vcpus * 1000 >= asked.cpu > (size.vcpus - 1) * 1000
    assert asked.memory is None or asked.memory - 2 * MIB < size.memory <= asked.memory
    assert size.memory % (2 * MIB) == 0


@pytest.mark.parametrize("asked", [Limits(memory=16 * MIB), Limits(cpu=129_000)])
def test_what_no_machine_can_be_is_refused(asked: Limits) -> None:
    with pytest.raises(Unsupported) as caught:
        size_of(asked)
    assert caught.value.hint and caught.value.field in ("memory", "cpu")


@given(limits, st.integers(64 * MIB, 1 << 40))
def test_room_to_grow_is_never_less_than_the_start(asked: Limits, host: int) -> None:
    size = size_of(asked)
    largest = largest_of(size, host)
    assert largest.vcpus >= max(4, size.vcpus) and largest.memory >= size.memory
    assert largest.memory <= max(size.memory, host)
    assert largest.memory <= 4 * size.memory
    words = sizing.cold_arguments(size, largest)
    assert ("growth-memory" in " ".join(words)) == (largest.memory > size.memory)


@given(limits, limits)
def test_a_change_within_the_room_adds_up(start: Limits, wanted: Limits) -> None:
    size = size_of(start)
    largest = largest_of(size, 1 << 40)
    current = Current(vcpus=size.vcpus, most_vcpus=largest.vcpus, memory=size.memory, room=largest.memory - size.memory)
    try:
        made = change(current, wanted, "tcg")
    except Unsupported as error:
        over = (wanted.memory or 0) > largest.memory or (wanted.cpu or 0) > largest.vcpus * 1000
        assert over and "restart" in error.hint
        return
    total = current.memory + made.grown - made.ballooned
    assert min(made.grown, made.ballooned) == 0
    assert total == (size.memory if wanted.memory is None else wanted.memory // (2 * MIB) * 2 * MIB)
    assert made.group == Limits(cpu=wanted.cpu, memory=total + OVERHEAD["tcg"], pids=largest.vcpus + THREADS)


def test_an_emulated_processor_is_never_unplugged_and_one_under_kvm_is() -> None:
    current = Current(vcpus=3, most_vcpus=4, memory=GIB, room=0)
    assert change(current, Limits(cpu=1000), "tcg").vcpus == 3
    assert change(current, Limits(cpu=1000), "kvm").vcpus == 1
    assert change(current, Limits(cpu=4000), "tcg").vcpus == 4


def test_where_processors_cannot_be_plugged_in_there_is_no_place_for_more() -> None:
    size = size_of(Limits(cpu=2000, memory=GIB))
    assert largest_of(size, 1 << 40, plugs_vcpus=False).vcpus == 2
    assert largest_of(size, 1 << 40).vcpus == 4


def test_what_is_not_limited_stays_as_it_is() -> None:
    current = Current(vcpus=3, most_vcpus=4, memory=GIB, room=3 * GIB, grown=GIB, ballooned=0)
    made = change(current, Limits(), "kvm")
    assert (made.vcpus, made.grown, made.ballooned) == (3, GIB, 0)
