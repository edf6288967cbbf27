"""Real unikernels, compiled here, in a home of their own; whatever a test leaves behind fails it."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from unikernel_kernels import build_multiboot, build_pvh, build_raw
from unikernel_lab import Lab

from lamella.host.compute.driver import Home
from lamella.host.compute.unikernel.driver import UnikernelDriver
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import marked


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kernels")
    return {
        "pvh": build_pvh(folder),
        "multiboot": build_multiboot(folder),
        "multiboot64": build_multiboot(folder, bits=64),
        "raw": build_raw(folder),
    }


@pytest.fixture(scope="session")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the accelerator's verdict of this run is kept, so that it is found once."""
    return tmp_path_factory.mktemp("accelerator") / "accelerator.json"


@pytest.fixture
def lab(tmp_path: Path, verdict: Path, kernels: dict[str, Path]) -> Iterator[Lab]:
    home = Home(tmp_path / "home", f"lamella-test-uk{os.getpid()}")
    home.state.mkdir(parents=True)
    home.run.mkdir()
    home.path.chmod(0o700)
    if verdict.exists():
        shutil.copy(verdict, home.run / verdict.name)
    lab = Lab(home, kernels)
    yield lab
    if (home.run / verdict.name).exists():
        shutil.copy(home.run / verdict.name, verdict)
    cgroups = Cgroups(ROOT, home.mark)
    left = {
        "groups": cgroups.ids(),
        "mounts": [entry.point for entry in mounts.below(home.path)],
        "processes": marked(home.mark),
        "written down": sorted(path.name for path in (home.state / "unikernel").glob("*")),
        "run": sorted(path.name for path in (home.run / "unikernel").glob("*")),
    }
    cgroups.remove()
    assert not any(left.values()), left


@pytest.fixture
async def driver(lab: Lab) -> AsyncIterator[UnikernelDriver]:
    driver = lab.driver()
    capabilities = await driver.open()
    assert capabilities[0].name == "compute.unikernel" and capabilities[0].available, capabilities[0].reason
    yield driver
    for id in await driver.inventory():
        await driver.remove(id)
    await driver.close()
