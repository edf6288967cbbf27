"""What is decided about volumes without asking anybody: steps, fits, room, conditions, places."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_admission import a_host

from lamella.control.contract import contract_of
from lamella.control.storage.conditions import drop, put
from lamella.control.storage.fitting import (
    check_form,
    check_mounts,
    check_passphrase,
    check_pool,
    settled_spec,
    whole,
)
from lamella.control.storage.hearing import measured
from lamella.control.storage.placing import host_for
from lamella.control.storage.promises import Promised
from lamella.control.storage.steps import Step, next_step
from lamella.model.errors import Invalid, NoRoom, Unavailable, Unsupported
from lamella.model.instance import Instance, InstanceSpec, InstanceStatus, Isolation, Phase
from lamella.model.resource import Condition, new_resource
from lamella.model.storage import (
    Feature,
    IoLimits,
    KeyWrap,
    Pool,
    PoolSpec,
    PoolStatus,
    StoragePhase,
    Volume,
    VolumeForm,
    VolumeMount,
    VolumeSpec,
    VolumeStatus,
)

GIB = 1 << 30


def a_volume(**changes: object) -> Volume:
    spec = VolumeSpec(**{"size": GIB, "filesystem": "ext4", **changes})  # type: ignore[arg-type]
    return new_resource("volume", "data", spec, VolumeStatus(size=spec.size, observed_generation=1))


def a_pool(*features: Feature, free: int = 10 * GIB, name: str = "default") -> Pool:
    status = PoolStatus(capacity=20 * GIB, free=free, features=[str(item) for item in features])
    return new_resource("pool", name, PoolSpec(), status)


@pytest.mark.parametrize("phase", list(StoragePhase))
@pytest.mark.parametrize("behind", [False, True])
def test_a_row_says_what_is_due(phase: StoragePhase, behind: bool) -> None:
    volume = a_volume()
    volume.status.phase, volume.generation = phase, 1 + behind
    due = {StoragePhase.PENDING: Step.MAKE, StoragePhase.DELETING: Step.REMOVE}
    assert next_step(volume) is due.get(phase, Step.CHANGE if behind and phase is StoragePhase.READY else None)
    volume.spec.owner = "inst_1"
    assert next_step(volume) is None
    pool = a_pool()
    pool.status.phase, pool.generation = phase, 2
    assert next_step(pool) is due.get(phase)


@given(st.integers(0, 1 << 50))
def test_whole_blocks_are_never_fewer_bytes(size: int) -> None:
    assert 0 <= whole(size) - size < 4096 and whole(size) % 4096 == 0 and whole(whole(size)) == whole(size)


def test_levels_have_volumes_as_they_can() -> None:
    block, tree, raw = a_volume(), a_volume(form=VolumeForm.FILESYSTEM, filesystem=""), a_volume(filesystem="")
    bare, mounted = VolumeMount(volume="data"), VolumeMount(volume="data", target="/x")

    def fits(level: Isolation, mount: VolumeMount, volume: Volume) -> bool:
        spec = InstanceSpec(image="x", isolation=level, volumes=[mount])
        try:
            check_mounts(spec)
            check_form(spec, mount, volume)
        except Unsupported as error:
            assert error.hint and error.field == "spec.volumes"
            return False
        return True

    for level in Isolation:
        here = level in (Isolation.CONTAINER, Isolation.WASM)
        assert fits(level, mounted, tree) is here and fits(level, bare, tree) is False
        assert fits(level, mounted, block) is (level is not Isolation.UNIKERNEL)
        assert fits(level, bare, block) is fits(level, bare, raw) is not here
        assert fits(level, mounted, raw) is False


@pytest.mark.parametrize("target", ["/", "/..", "/a/../b", "//", "/./"])
def test_a_volume_is_mounted_at_a_place_of_its_own(target: str) -> None:
    with pytest.raises(Invalid):
        check_mounts(InstanceSpec(image="x", volumes=[VolumeMount(volume="data", target=target)]))


def test_room_that_is_promised_twice_is_told() -> None:
    thin, thick = a_pool(Feature.BLOCK, Feature.THIN), a_pool(Feature.BLOCK)
    assert check_pool(thin, a_volume().spec) == ""
    assert "10GiB free" in check_pool(thin, a_volume(size=11 * GIB).spec)
    with pytest.raises(NoRoom):
        check_pool(thick, a_volume(size=11 * GIB).spec)
    with pytest.raises(Unsupported):
        check_pool(thin, a_volume(form=VolumeForm.FILESYSTEM).spec)
    assert check_pool(new_resource("pool", "new", PoolSpec(), PoolStatus()), a_volume(size=1 << 50).spec) == ""


@pytest.mark.parametrize(
    "spec",
    [
        VolumeSpec(),
        VolumeSpec(size=4096),
        VolumeSpec(size=GIB, owner="inst_1"),
        VolumeSpec(size=GIB, source="snap_1"),
        VolumeSpec(form=VolumeForm.FILESYSTEM, filesystem="ext4"),
        VolumeSpec(form=VolumeForm.FILESYSTEM, encryption=KeyWrap.TPM),
        VolumeSpec(form=VolumeForm.FILESYSTEM, limits=IoLimits(iops=1)),
        VolumeSpec(size=GIB, limits=IoLimits(iops=10, iops_burst=9)),
        VolumeSpec(size=GIB, limits=IoLimits(bandwidth_burst=9)),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(spec: VolumeSpec) -> None:
    with pytest.raises(Invalid) as refused:
        settled_spec(spec)
    assert refused.value.hint and refused.value.field.startswith("spec")


def test_a_passphrase_is_there_when_it_is_needed_and_only_then() -> None:
    check_passphrase(KeyWrap.PASSPHRASE, "words")
    check_passphrase(None, "")
    for wrap, words in ((KeyWrap.PASSPHRASE, ""), (KeyWrap.TPM, "words"), (None, "words")):
        with pytest.raises(Invalid) as refused:
            check_passphrase(wrap, words)
        assert "words" not in str(refused.value)


def test_the_host_with_the_most_room_makes_it() -> None:
    pool = a_pool(name="fast")
    hosts = [a_host(name) for name in ("alpha", "beta", "gamma")]
    with pytest.raises(Unavailable):
        host_for(pool, hosts)
    for number, host in enumerate(hosts):
        host.status.pools["fast"] = a_pool(free=number * GIB).status
    assert host_for(pool, hosts).name == "gamma"
    hosts[2].status.phase = "away"
    assert host_for(pool, hosts).name == "beta"


def test_a_condition_keeps_its_time_while_it_says_the_same() -> None:
    first = put([], Condition(type="Space", status=False, reason="low", message="a"))
    again = put(first, Condition(type="Space", status=False, reason="low", message="b"))
    assert again[0].since == first[0].since and again[0].message == "b"
    other = put(again, Condition(type="Space", status=False, reason="full", message="c"))
    assert other[0].since != first[0].since and len(other) == 1
    assert drop(other, "Space") == []


def test_a_measurement_takes_back_only_what_is_over() -> None:
    pool = a_pool()
    pool.status.conditions = put([], Condition(type="Space", status=False, reason="low"))
    unsized = Condition(type="SizeEnforced", status=False, reason="x")
    short = measured(pool, PoolStatus(capacity=100, free=1, conditions=[unsized]))
    assert (short.capacity, [item.type for item in short.conditions]) == (100, ["SizeEnforced", "Space"])
    roomy = measured(pool, PoolStatus(capacity=100, free=80, conditions=[unsized]))
    assert [item.type for item in roomy.conditions] == ["SizeEnforced"]
    pool.status.phase = StoragePhase.DELETING
    assert measured(pool, roomy).phase is StoragePhase.DELETING


def test_a_contract_does_not_promise_what_nothing_enforces() -> None:
    spec = InstanceSpec(image="x", volumes=[VolumeMount(volume="data", target="/x")])
    instance: Instance = new_resource("instance", "box", spec, InstanceStatus(phase=Phase.STOPPED))
    volume = a_volume(limits=IoLimits(iops=5, group="all"))
    item = Promised(mount=spec.volumes[0], volume=volume, pool=a_pool(Feature.SNAPSHOT))
    contract = contract_of(instance, [], [item])
    [line] = [line for line in contract.limits if line.subject == "volume data"]
    assert "not running" in line.value and line.enforced_by == "" and "group all" in line.asked
    lines = [line for line in contract.guarantees if line.subject == "volume data"]
    assert any("not encrypted" in line.value and not line.enforced_by for line in lines)
    assert any("pool's own snapshots" in line.enforced_by for line in lines)
    shared = a_volume(form=VolumeForm.FILESYSTEM, filesystem="", size=0)
    contract = contract_of(instance, [], [Promised(mount=spec.volumes[0], volume=shared, pool=None)])
    assert any("several instances" in line.value for line in contract.guarantees)
