"""The policy of a host: what fits it, what its agent hears of it, and that a host which comes again keeps it."""

from pathlib import Path

import pytest

from lamella.control.bulletin import Bulletin
from lamella.control.desk import Desk
from lamella.control.hosts import Hosts
from lamella.control.huge_pages import check_machine, with_room
from lamella.model.errors import Conflict, Invalid, NoRoom, Unsupported
from lamella.model.host import Host, HostSpec, HostStatus, SamePages
from lamella.model.instance import Instance, InstanceSpec, InstanceStatus, Isolation, Power
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.resource import new_resource
from lamella.model.topology import Cpu, HugePages, Node, Topology
from lamella.store.database import open_store
from lamella.store.store import Store

MIB, GIB = 1 << 20, 1 << 30
ROOT = Principal(kind="user", name="root", admin=True)


def facts() -> HostStatus:
    pages = [HugePages(size=2 * MIB, total=8, free=8), HugePages(size=GIB, total=0, free=0)]
    node = Node(id=0, cpus=[0, 1], memory=8 * GIB, huge_pages=pages)
    topology = Topology(cpus=[Cpu(id=0, core=0), Cpu(id=1, core=1)], caches=[], nodes=[node])
    return HostStatus(cpu=2000, memory=8 * GIB, topology=topology)


def machine(host: str, memory: int, *, power: Power = Power.RUNNING, size: int | None = 2 * MIB) -> Instance:
    spec = InstanceSpec(image="i", isolation=Isolation.VM, memory=memory, huge_pages=size, power=power)
    return new_resource("instance", f"m{memory}", spec, InstanceStatus(host=host))


async def store_at(path: Path) -> Store:
    store = open_store(f"sqlite:///{path}/lamella.db")
    await store.open()
    return store


async def test_the_agent_hears_of_every_change_once_and_a_host_that_comes_again_keeps_its_policy(
    tmp_path: Path,
) -> None:
    store = await store_at(tmp_path)
    try:
        desk, hosts = Desk(store, Bulletin(store)), Hosts(store)
        id = await desk.register("n1", facts(), "")
        first = await desk.assignments(id, 0, 0)
        assert first.policy == HostSpec()
        wish = {"overcommit": {"cpu": 4, "memory": 1.5}, "reserve": {"cpu": 500}, "ksm": "same-project"}
        await hosts.patch(ROOT, "default", "n1", ResourcePatch(spec={**wish, "huge_pages": {"2M": 512}}), expected=None)
        told = await desk.assignments(id, first.revision, 0)
        assert told.policy is not None and told.policy.ksm is SamePages.SAME_PROJECT
        assert told.policy.huge_pages == {"2MiB": 512}
        assert (told.policy.overcommit.cpu, told.policy.overcommit.memory, told.policy.reserve.cpu) == (4.0, 1.5, 500)
        assert (await desk.assignments(id, told.revision, 0)).policy is None
        await desk.register("n1", facts(), "https://elsewhere:1")
        again = (await desk.assignments(id, 0, 0)).policy
        assert again is not None and (again.address, again.ksm) == ("https://elsewhere:1", SamePages.SAME_PROJECT)
        await hosts.patch(ROOT, "default", "n1", ResourcePatch(spec={"ksm": None, "huge_pages": None}), expected=None)
        last = (await desk.assignments(id, 0, 0)).policy
        assert last is not None and (last.ksm, last.huge_pages, last.overcommit.cpu) == (None, None, 4.0)
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ({"ksm": "some"}, Invalid, "ksm"),
        ({"overcommit": {"cpu": 0.5}}, Invalid, "overcommit"),
        ({"reserve": {"cpu": 3000}}, Invalid, "has 2 cores and cannot keep 3 for itself"),
        ({"reserve": {"memory": 9 * GIB}}, Invalid, "has 8GiB of memory and cannot keep 9GiB"),
        ({"address": "https://evil:1"}, Invalid, "it says itself"),
        ({"huge_pages": {"4MiB": 1}}, Invalid, "has no pages of 4MiB"),
        ({"huge_pages": {"two": 1}}, Invalid, "is not a size"),
        ({"huge_pages": {"2MiB": 4096}, "reserve": {"memory": GIB}}, Invalid, "8GiB of huge pages do not fit"),
        ({"huge_pages": {"2MiB": 31}}, Conflict, "hold 32 pages of 2MiB, and 31 would be left"),
    ],
)
async def test_a_policy_that_does_not_fit_is_refused_with_a_sentence(
    tmp_path: Path, spec: dict[str, object], error: type[Exception], words: str
) -> None:
    store = await store_at(tmp_path)
    try:
        id = await Desk(store, Bulletin(store)).register("n1", facts(), "")
        await store.write(lambda tx: tx.insert(machine(id, 64 * MIB)))
        await store.write(lambda tx: tx.insert(machine(id, 128 * MIB, power=Power.STOPPED)))
        with pytest.raises(error, match=words):
            await Hosts(store).patch(ROOT, "default", "n1", ResourcePatch(spec=spec), expected=None)
        assert (await store.get("host", "default", "n1")).spec == HostSpec()
    finally:
        await store.close()


async def test_pages_that_somebody_holds_are_not_given_back(tmp_path: Path) -> None:
    store = await store_at(tmp_path)
    try:
        id = await Desk(store, Bulletin(store)).register("n1", facts(), "")
        hosts = Hosts(store)
        await hosts.patch(ROOT, "default", "n1", ResourcePatch(spec={"huge_pages": {"2MiB": 64}}), expected=None)
        await store.write(lambda tx: tx.insert(machine(id, 64 * MIB)))
        with pytest.raises(Conflict, match="hold 32 pages of 2MiB, which would be given back"):
            await hosts.patch(ROOT, "default", "n1", ResourcePatch(spec={"huge_pages": None}), expected=None)
    finally:
        await store.close()


def test_a_machine_goes_where_its_pages_are_free() -> None:
    told: Host = new_resource("host", "told", HostSpec(), facts())
    set_apart: Host = new_resource("host", "apart", HostSpec(huge_pages={"2MiB": 40}), facts())
    spec = machine("", 32 * MIB).spec
    assert with_room(spec, [told, set_apart], [machine(set_apart.id, 48 * MIB)]) == [set_apart]
    assert with_room(machine("", 16 * MIB).spec, [told, set_apart], []) == [told, set_apart]
    assert with_room(machine("", GIB, size=None).spec, [told], []) == [told]
    taken = [machine(set_apart.id, 64 * MIB)]
    with pytest.raises(NoRoom, match=r"16 pages of 2MiB free \(told has 8 of 8 free; apart has 8 of 40 free\)"):
        with_room(spec, [told, set_apart], taken)


def test_huge_pages_are_for_machines_whose_memory_is_whole_pages() -> None:
    check_machine(InstanceSpec(image="i", isolation=Isolation.MICROVM, huge_pages=2 * MIB))
    with pytest.raises(Unsupported, match="container has no memory of its own"):
        check_machine(InstanceSpec(image="i", huge_pages=2 * MIB))
    with pytest.raises(Invalid, match="not whole pages of 2MiB"):
        check_machine(InstanceSpec(image="i", isolation=Isolation.VM, memory=33 * MIB, huge_pages=2 * MIB))
