"""Whose pages may be one, what of the host is saved and put back, and the sums of what is shared."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Home
from lamella.host.compute.qemu import pages as qemu_pages
from lamella.host.sharing import figures, pages
from lamella.host.sharing.settings import Settings
from lamella.host.sharing.taking import Machine, chosen, participants
from lamella.host.sharing.wing import SharingWing
from lamella.model.assignment import Assignment, Assignments
from lamella.model.errors import NoRoom, Unavailable, Unsupported
from lamella.model.host import HostSpec, SamePages
from lamella.model.instance import InstanceSpec, InstanceStatus, Isolation
from lamella.model.resource import new_resource

MIB = 1 << 20

machines = st.lists(
    st.builds(
        Machine,
        id=st.uuids().map(str),
        project=st.sampled_from(["a", "b", "c"]),
        memory=st.integers(1, 4).map(lambda count: count * MIB),
        merged=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda machine: machine.id,
)


@given(machines)
def test_pages_are_never_shared_across_projects_unless_somebody_says_so(running: list[Machine]) -> None:
    taking = participants(SamePages.SAME_PROJECT, running)
    assert len({machine.project for machine in running if machine.id in taking}) == min(1, len(running))
    assert taking == {machine.id for machine in running if machine.project == chosen(running)}
    assert participants(SamePages.ALL, running) == {machine.id for machine in running}
    assert participants(SamePages.OFF, running) == participants(None, running) == frozenset()


@given(machines)
def test_once_chosen_a_project_stays_while_it_has_two_machines(running: list[Machine]) -> None:
    def settle(now: list[Machine]) -> list[Machine]:
        taking = participants(SamePages.SAME_PROJECT, now)
        return [Machine(id=m.id, project=m.project, memory=m.memory, merged=m.id in taking) for m in now]

    settled = settle(running)
    assert settle(settled) == settled
    project = chosen(settled)
    more = [*settled, *(Machine(id=f"new{n}", project="d", memory=64 * MIB) for n in range(3))]
    if sum(machine.project == project for machine in settled) > 1:
        assert chosen(more) == project
    else:
        assert chosen(more) == "d" or sum(m.project == chosen(more) for m in more) > 1


def kernel(place: Path) -> Path:
    """Files as those of /sys/kernel/mm on Linux 6.18."""
    for name, value in {
        "ksm/run": "0",
        "ksm/pages_to_scan": "100",
        "ksm/sleep_millisecs": "20",
        "ksm/advisor_mode": "[none] scan-time",
        "hugepages/hugepages-2048kB/nr_hugepages": "4",
        "hugepages/hugepages-2048kB/free_hugepages": "4",
        "hugepages/hugepages-2048kB/resv_hugepages": "1",
    }.items():
        path = place / "mm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return place / "mm"


def all_of(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): path.read_text().strip() for path in place.rglob("*") if path.is_file()}


def test_settings_are_put_back_by_whoever_comes_after_a_daemon_that_was_killed(tmp_path: Path) -> None:
    place, record = kernel(tmp_path), tmp_path / "settings.json"
    before = all_of(place)
    first = Settings(record, "boot-1", place)
    assert pages.use_same_pages(first, SamePages.SAME_PROJECT) == []
    assert pages.use_huge_pages(first, {"2MiB": 512}) == []
    assert (first.read("ksm/run"), first.read("hugepages/hugepages-2048kB/nr_hugepages")) == ("1", "512")
    # Another daemon, and another policy: what was at first stays what is put back.
    second = Settings(record, "boot-1", place)
    assert pages.use_same_pages(second, SamePages.OFF) == [] and second.read("ksm/run") == "2"
    assert pages.use_huge_pages(second, {"2MiB": 8}) == []
    assert pages.use_same_pages(second, None) == []
    assert {name: value for name, value in all_of(place).items() if name.startswith("ksm/")} == {
        name: value for name, value in before.items() if name.startswith("ksm/")
    }
    assert pages.use_huge_pages(second, None) == [] and all_of(place) == before
    assert not record.exists() and second.restore() == []


def test_what_was_saved_before_the_host_was_restarted_is_not_put_back(tmp_path: Path) -> None:
    place, record = kernel(tmp_path), tmp_path / "settings.json"
    Settings(record, "boot-1", place).write("ksm/run", "1")
    (place / "ksm/run").write_text("0")
    (place / "ksm/sleep_millisecs").write_text("77")
    after = Settings(record, "boot-2", place)
    assert after.restore() == [] and after.saved() == []
    after.write("ksm/sleep_millisecs", "5")
    assert json.loads(record.read_text()) == {"boot": "boot-2", "values": {"ksm/sleep_millisecs": "77"}}
    record.write_text("{half")
    assert after.saved() == []


def test_what_the_kernel_cannot_do_is_said(tmp_path: Path) -> None:
    bare = Settings(tmp_path / "record", "boot", tmp_path / "nothing")
    assert "no KSM" in pages.use_same_pages(bare, SamePages.ALL)[0] and pages.use_same_pages(bare, SamePages.OFF) == []
    assert "no pages of 1GiB" in pages.use_huge_pages(bare, {"1GiB": 2})[0]
    place = kernel(tmp_path)
    (place / "ksm/advisor_mode").write_text("none [scan-time]")
    chooses = Settings(tmp_path / "record", "boot", place)
    assert [item.available for item in pages.capabilities(bare)] == [False, False, False]
    assert [(item.available, item.value) for item in pages.capabilities(chooses)] == [
        (True, ""),
        (True, "2MiB"),
        (False, "none"),
    ]
    assert pages.use_same_pages(chooses, SamePages.ALL) == [] and chooses.read("ksm/pages_to_scan") == "100"


def test_a_machine_is_not_begun_without_its_huge_pages(tmp_path: Path) -> None:
    place = kernel(tmp_path) / "hugepages"
    qemu_pages.check(6 * MIB, 2 * MIB, place)
    qemu_pages.check(1 << 40, None, place)
    with pytest.raises(NoRoom, match="4 pages of 2MiB are needed, and 3 of 4 are free"):
        qemu_pages.check(8 * MIB, 2 * MIB, place)
    with pytest.raises(Unsupported, match="no pages of 1GiB"):
        qemu_pages.check(1 << 30, 1 << 30, place)


# Of a QEMU of 512 MiB beside four like it, Linux 6.18.
ROLLUP = """00400000-7ffd0c7f6000 ---p 00000000 00:00 0                              [rollup]
Rss:              204800 kB
Pss:              120000 kB
Pss_Dirty:        110000 kB
Shared_Clean:      20000 kB
Shared_Dirty:      84800 kB
Private_Clean:      4000 kB
Private_Dirty:     96000 kB
KSM:               80000 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:   65536 kB
Locked:                0 kB
"""


def test_sums_are_of_what_each_has_and_of_what_it_would_have_alone(tmp_path: Path) -> None:
    for pid, merging in ((7, "20000\n"), (8, "0\n")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "smaps_rollup").write_text(ROLLUP)
        (tmp_path / str(pid) / "ksm_merging_pages").write_text(merging)
    first, second = figures.read(7, tmp_path), figures.read(8, tmp_path)
    assert (first.own, first.shared, first.proportional) == (100000 << 10, 104800 << 10, 120000 << 10)
    assert (first.huge, first.merged, second.merged) == (64 * MIB, 20000 * 4096, 0)
    assert figures.alone([first]) == (204800 << 10) + 64 * MIB
    assert figures.alone([first, second]) == 2 * ((100000 << 10) + 64 * MIB) + (104800 << 10)
    assert figures.together([first, second]) == 2 * ((120000 << 10) + 64 * MIB)
    assert figures.read(9, tmp_path) == figures.Memory() and figures.alone([]) == 0


class Deaf:
    """Machines that are in or out; ``stuck`` is one that does not answer when it is asked to change."""

    def __init__(self) -> None:
        self.taking: dict[str, bool] = {}
        self.stuck = ""
        self.said: list[tuple[str, bool]] = []

    async def merged(self, id: str) -> bool | None:
        return self.taking.get(id)

    async def merge(self, id: str, on: bool) -> None:
        if id == self.stuck:
            raise Unavailable("QEMU does not answer")
        self.taking[id] = on
        self.said.append((id, on))


async def test_nobody_joins_before_everybody_who_must_not_take_part_has_left(tmp_path: Path) -> None:
    (tmp_path / "home" / "state").mkdir(parents=True)
    driver: Any = Deaf()
    instances: list[Assignment] = []
    for name, project in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b"), ("secret", "a")):
        level = Isolation.CONFIDENTIAL if name == "secret" else Isolation.VM
        spec = InstanceSpec(image="i", isolation=level, memory=(2 if project == "b" else 1) << 30)
        instance = new_resource("instance", name, spec, InstanceStatus(), project=project)
        instance.id = name
        instances.append(Assignment(revision=1, instance=instance))
        driver.taking[name] = False
    home = Home(path=tmp_path / "home", mark="lamella-0000unit")
    settings = Settings(home.state / "settings.json", "boot", kernel(tmp_path))
    wing = SharingWing(home, lambda: [(asked, driver) for asked in instances], settings)
    watch = asyncio.create_task(wing.watch())

    async def told(ksm: SamePages | None, ready: Any) -> None:
        await wing.use(Assignments(revision=1, complete=False, policy=HostSpec(ksm=ksm)))
        async with asyncio.timeout(60):
            while not ready():
                await asyncio.sleep(0.01)

    def taking() -> set[str]:
        return {name for name, on in driver.taking.items() if on}

    try:
        await told(SamePages.ALL, lambda: taking() == {"a1", "a2", "b1", "b2"})
        driver.said.clear()
        driver.stuck = "a1"
        await told(SamePages.SAME_PROJECT, lambda: ("a2", False) in driver.said)
        async with asyncio.timeout(60):
            while not (await wing.consolidation()).refused:
                await asyncio.sleep(0.01)
        assert taking() == {"a1", "b1", "b2"} and "a1 has not left" in (await wing.consolidation()).refused[0]
        driver.taking |= {"b1": False, "b2": False}
        await told(None, lambda: settings.read("ksm/run") == "0")
        # It says nothing, and takes part for its own project: nobody of another joins it.
        driver.said.clear()
        instances[0].instance.project = "c"
        await told(SamePages.SAME_PROJECT, lambda: settings.read("ksm/run") == "1")
        driver.stuck = ""
        await told(SamePages.OFF, lambda: taking() == set() and settings.read("ksm/run") == "2")
        assert driver.said == [("a1", False)]
    finally:
        watch.cancel()
