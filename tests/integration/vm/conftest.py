"""Real machines, in a home of their own; whatever a test leaves behind fails it."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop
from vm_lab import Lab, build_guest

from lamella.host.compute.driver import Home
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import marked


@pytest.fixture(scope="session")
def vm_verdict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the accelerator's verdict of this run is kept, so that it is found once."""
    return tmp_path_factory.mktemp("vm-accelerator") / "accelerator.json"


@pytest.fixture(scope="session")
def guest_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with the small guest (guest.c)."""
    return build_guest(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def lab(tmp_path: Path, vm_verdict: Path) -> Iterator[Lab]:
    home = Home(tmp_path / "home", f"lamella-test-vm{os.getpid()}")
    home.state.mkdir(parents=True)
    home.run.mkdir()
    home.path.chmod(0o700)
    if vm_verdict.exists():
        shutil.copy(vm_verdict, home.run / "accelerator.json")
    yield Lab(home)
    if (home.run / "accelerator.json").exists():
        shutil.copy(home.run / "accelerator.json", vm_verdict)
    cgroups = Cgroups(ROOT, home.mark)
    left = {
        "groups": cgroups.ids(),
        "mounts": [entry.point for entry in mounts.below(home.path)],
        "processes": marked(home.mark),
        "written down": sorted(path.name for path in (home.state / "vm").glob("*")),
        "run": sorted(path.name for path in (home.run / "vm").glob("*")),
    }
    cgroups.remove()
    assert not any(left.values()), left


@pytest.fixture
async def driver(lab: Lab) -> AsyncIterator[VmDriver]:
    driver = lab.driver()
    capabilities = await driver.open()
    assert capabilities[0].name == "compute.vm" and capabilities[0].available, capabilities[0].reason
    yield driver
    for id in await driver.inventory():
        await driver.remove(id)
    await driver.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No Python signal handler runs while uvloop waits, so pytest-timeout's alarm would never go off here: a thread ends the run."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600, method="thread"))


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The daemon's own loop: it knows no socket that a library may reach into."""
    return uvloop.EventLoopPolicy()
