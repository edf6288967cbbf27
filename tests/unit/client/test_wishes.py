"""What people write in Python, as specs."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.client import wish
from lamella.model.errors import Invalid
from lamella.model.instance import Isolation, RestartMode
from lamella.model.quantity import format_cpu, format_size


def test_units_as_people_type_them() -> None:
    made = wish.instance(
        "debian:12", {"memory": "512MiB", "cpu": 1.5, "disk": 1 << 30, "isolation": "microvm", "stop_timeout": "2m"}
    )
    assert (made.spec.memory, made.spec.cpu, made.spec.disk, made.spec.stop_timeout) == (
        512 << 20,
        1500,
        1 << 30,
        120.0,
    )
    assert made.spec.isolation is Isolation.MICROVM
    assert [nic.network for nic in made.spec.nics] == ["default"]
    assert wish.instance("debian:12", {"network": "none"}).spec.nics == []


@pytest.mark.parametrize(
    "wishes",
    [
        {"memory": "much"},
        {"cpu": "none"},
        {"isolation": "vm9"},
        {"command": "a b"},
        {"publish": ["x"]},
        {"restart": "maybe"},
        {"pids": "4"},
    ],
)
def test_what_is_not_understood_is_refused(wishes: wish.Wishes) -> None:
    with pytest.raises(Invalid):
        wish.instance("debian:12", wishes)


@given(st.integers(4 << 20, 1 << 50))
def test_a_size_in_words_is_the_size_when_exact(size: int) -> None:
    size &= ~((1 << 20) - 1)
    assert wish.size(format_size(size), field="memory") == size or "." in format_size(size)


@given(st.integers(10, 1_000_000))
def test_cores_are_exact_to_the_milli_core(milli: int) -> None:
    assert wish.cores(milli / 1000) == milli
    assert milli > 999_999 or wish.cores(format_cpu(milli)) == milli


def test_restart_policies() -> None:
    assert wish.restart("on-failure:3") == msgspec.convert(
        {"mode": "on-failure", "retries": 3}, type(wish.restart("no"))
    )
    assert wish.restart("always").mode is RestartMode.ALWAYS


def test_a_patch_holds_only_what_was_said() -> None:
    assert msgspec.to_builtins(wish.patch({"memory": None})) == {"spec": {"memory": None}}
    assert msgspec.to_builtins(wish.patch({"labels": {"a": None}})) == {"labels": {"a": None}}
