"""Sizes of microVMs, and the changes that they take while they run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Limits
from lamella.host.compute.microvm.size import SMALLEST_MEMORY, change, size_of
from lamella.host.compute.qemu.size import MIB, Size, group_limits
from lamella.model.errors import Unsupported

CPU = st.none() | st.integers(10, 64_000)
MEMORY = st.none() | st.integers(SMALLEST_MEMORY, 1 << 40)
LIMITS = st.builds(Limits, cpu=CPU, memory=MEMORY, pids=st.none() | st.integers(1, 10_000))


def test_what_nobody_asked_for_is_one_processor_and_512_mib() -> None:
    assert size_of(Limits()) == Size(vcpus=1, memory=512 * MIB)


@given(LIMITS)
def test_processors_are_rounded_up_and_memory_never_exceeds_the_limit(limits: Limits) -> None:
    size = size_of(limits)
    assert size.memory % MIB == 0
    if limits.cpu is not None:
        assert size.vcpus * 1000 >= limits.cpu > (size.vcpus - 1) * 1000
    if limits.memory is not None:
        assert limits.memory - MIB < size.memory <= limits.memory


@given(LIMITS, st.sampled_from(["kvm", "tcg"]))
def test_the_group_has_room_for_qemu_and_the_cpu_that_was_asked(limits: Limits, accelerator: str) -> None:
    size = size_of(limits)
    group = group_limits(limits, size, accelerator)
    assert group.cpu == limits.cpu
    assert group.memory is not None and group.memory > size.memory
    assert group.pids is not None and group.pids > size.vcpus


@given(LIMITS, LIMITS)
def test_a_change_fits_into_the_size_or_names_restart(first: Limits, second: Limits) -> None:
    size = size_of(first)
    fits = (second.cpu or 0) <= size.vcpus * 1000 and (second.memory or 0) <= size.memory
    if not fits:
        with pytest.raises(Unsupported, match="restart"):
            change(size, second, "tcg")
        return
    made = change(size, second, "tcg")
    assert made.guest_memory <= size.memory
    assert made.group.cpu == second.cpu


def test_a_kernel_does_not_fit_into_little_memory() -> None:
    with pytest.raises(Unsupported, match="container"):
        size_of(Limits(memory=64 * MIB))
    with pytest.raises(Unsupported, match="container"):
        change(Size(vcpus=1, memory=256 * MIB), Limits(memory=8 * MIB), "kvm")


def test_too_many_processors() -> None:
    with pytest.raises(Unsupported, match="64"):
        size_of(Limits(cpu=65_000))
