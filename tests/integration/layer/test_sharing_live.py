"""What a host's policy does on this machine: equal pages of real microVMs merged by the real kernel, huge pages, and all of it put back."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.house import LayerUnderTest, layer_in

from lamella.model.operation import ProjectSpec, ProjectStatus
from lamella.model.resource import new_resource
from lamella.store.database import open_store

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

KSM = Path("/sys/kernel/mm/ksm")
HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
PATIENCE = 150.0
MIB = 1 << 20
# Every page of the file is the same, in every guest.
FILL = "mkdir -p /m; mount -t tmpfs none /m; yes lamella | head -c 16777216 > /m/same; echo filled; sleep 3600"


def settings() -> dict[str, str]:
    names = ("run", "pages_to_scan", "sleep_millisecs", "advisor_mode")
    found = {name: (KSM / name).read_text().strip() for name in names if (KSM / name).exists()}
    return found | {"huge": HUGE.read_text().strip()}


@pytest.fixture
def host_settings() -> Iterator[dict[str, str]]:
    """What this machine has, put back whatever becomes of the test."""
    if not KSM.is_dir() or not HUGE.exists():
        pytest.skip("this kernel has no KSM or no huge pages of 2 MiB")
    before = settings()
    try:
        yield before
    finally:
        for name in ("pages_to_scan", "sleep_millisecs", "run"):
            if (KSM / name).read_text().strip() != before[name]:
                (KSM / name).write_text(before[name])
        if HUGE.read_text().strip() != before["huge"]:
            HUGE.write_text(before["huge"])


async def a_second_project(home: Path) -> None:
    """Named ``team``, in a store that is not used yet: nothing else makes projects."""
    (home / "state").mkdir(mode=0o700, parents=True)
    store = open_store(f"sqlite:///{home}/state/lamella.db")
    await store.open()
    try:
        await store.write(lambda tx: tx.insert(new_resource("project", "team", ProjectSpec(), ProjectStatus())))
    finally:
        await store.close()


def begin(layer: LayerUnderTest, project: str, name: str) -> None:
    """A microVM that fills some of its memory with the same pages as every other."""
    layer.lamella(
        "run", "-d", "--project", project, "--isolation", "microvm", "--name", name, "--memory", "160MiB",
        "--network", "none", "busybox", "--", "sh", "-c", FILL,
    )  # fmt: skip


def filled(layer: LayerUnderTest, project: str, name: str) -> int:
    """Its QEMU's pid, when it has."""
    until(lambda: "filled" in layer.out("logs", name, "--project", project), f"{name} has not filled its memory", layer)
    return json.loads(layer.out("show", name, "--project", project, "-o", "json"))["status"]["pid"]


def merging(pid: int) -> int:
    """How many of its pages the kernel holds in KSM."""
    return int(Path(f"/proc/{pid}/ksm_merging_pages").read_text())


def until(true: Callable[[], bool], otherwise: str, layer: LayerUnderTest) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"{otherwise}\n{layer.log()}"
        time.sleep(0.5)


def host(layer: LayerUnderTest) -> dict[str, Any]:
    name = layer.out("host", "ls", "-q").strip()
    return json.loads(layer.out("host", "show", name, "-o", "json"))


def pages_line(layer: LayerUnderTest, name: str, project: str = "default") -> dict[str, Any]:
    lines = json.loads(layer.out("contract", name, "--project", project, "-o", "json"))["isolation"]
    return next(line for line in lines if line["name"] == "memory pages")


def test_equal_pages_are_one_within_a_project_and_all_is_as_it_was_afterwards(
    tmp_path: Path, netns: str, root_tar: Path, host_settings: dict[str, str]
) -> None:
    home = tmp_path / "home"
    asyncio.run(a_second_project(home))
    with layer_in(home, netns) as layer:
        machines = [("default", "one"), ("default", "two"), ("team", "other")]
        for project in ("default", "team"):
            layer.lamella("image", "import", "--project", project, str(root_tar), "--name", "busybox")
        for project, name in machines:
            begin(layer, project, name)
        *ours, theirs = [filled(layer, project, name) for project, name in machines]
        assert [merging(pid) for pid in (*ours, theirs)] == [0, 0, 0]
        before = host(layer)["status"]["sharing"]
        assert before["instances"] == 3 and before["merged"] == 0 and pages_line(layer, "one")["in_force"]

        layer.lamella("host", "set", "--ksm", "same-project")
        until(lambda: all(merging(pid) > 3000 for pid in ours), "nothing was merged", layer)
        # A machine that answers late on a busy host is told of until it has.
        until(lambda: not host(layer)["status"]["sharing"]["refused"], "something is not as asked", layer)
        sharing = host(layer)["status"]["sharing"]
        assert merging(theirs) == 0 and pages_line(layer, "other", "team")["in_force"]
        assert not pages_line(layer, "one")["in_force"] and "its project" in pages_line(layer, "one")["value"]
        assert (sharing["projects"], sharing["ksm"]) == (["default"], "on")
        assert sharing["alone"] - sharing["together"] > before["alone"] - before["together"] + 16 * MIB

        # The next daemon knows what was before, not the one that changed it.
        layer.kill()
        layer.start()
        layer.lamella("host", "set", "--ksm", "all")
        until(lambda: merging(theirs) > 3000, "the other project's machine does not take part", layer)

        layer.lamella("host", "set", "--ksm", "off")
        until(lambda: [merging(pid) for pid in (*ours, theirs)] == [0, 0, 0], "pages are still shared", layer)
        until(lambda: pages_line(layer, "one")["in_force"], "the machine still takes part", layer)
    assert settings() == host_settings


def test_a_machine_of_huge_pages_has_them_and_one_too_many_is_refused(
    tmp_path: Path, netns: str, root_tar: Path, host_settings: dict[str, str]
) -> None:
    wanted = int(host_settings["huge"]) + 96
    with layer_in(tmp_path / "home", netns) as layer:
        layer.lamella("image", "import", str(root_tar), "--name", "busybox")
        name = layer.out("host", "ls", "-q").strip()
        layer.lamella("host", "set", name, "--huge-pages", f"2MiB={wanted}")
        done = lambda: int(HUGE.read_text()) == wanted or "found room for" in layer.out("host", "show", name)  # noqa: E731
        until(done, "no page was set apart", layer)
        begin = ("run", "-d", "--isolation", "microvm", "--network", "none", "--huge-pages", "2MiB", "--memory")
        if int(HUGE.read_text()) < wanted:
            pytest.skip("this machine's free memory is in pieces: it has too few huge pages")
        large = f"{2 * wanted - 32}MiB"
        layer.lamella(*begin, large, "--name", "huge", "busybox", "--", "sh", "-c", "echo up; sleep 3600")
        until(lambda: "up" in layer.out("logs", "huge"), "it did not boot", layer)
        rollup = Path(f"/proc/{layer.show('huge')['status']['pid']}/smaps_rollup").read_text()
        huge = sum(int(line.split()[1]) for line in rollup.splitlines() if "Hugetlb" in line)
        lines = json.loads(layer.out("contract", "huge", "-o", "json"))["isolation"]
        line = next(line for line in lines if line["name"] == "huge pages")
        assert huge > 0 and line["in_force"] and line["value"].startswith("of 2MiB"), (rollup, line)
        for change, words in (
            ((*begin, "64MiB", "busybox", "--", "true"), b"no host has 32 pages of 2MiB free"),
            (("host", "set", "--huge-pages", "2MiB=8"), b"and 8 would be left"),
            (("host", "set", "--huge-pages", "3MiB=8"), b"has no pages of 3MiB"),
        ):
            done = layer.lamella(*change, check=False)
            assert done.returncode != 0 and words in done.stderr, done
    assert settings() == host_settings
