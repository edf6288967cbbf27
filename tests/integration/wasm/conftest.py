"""Real modules in a home of their own; whatever a test leaves behind fails it."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from wasm_lab import SOURCES, Lab, compile_module

from lamella.host.compute.driver import Home
from lamella.host.compute.wasm.driver import WasmDriver
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import marked


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules of ``modules/``, compiled."""
    directory = tmp_path_factory.mktemp("modules")
    for source in sorted(SOURCES.glob("*.c")):
        compile_module(source, directory / f"{source.stem}.wasm")
    return directory


@pytest.fixture
def lab(tmp_path: Path, built: Path) -> Iterator[Lab]:
    home = Home(tmp_path / "home", f"lamella-test-wm{os.getpid()}")
    home.state.mkdir(parents=True)
    home.run.mkdir()
    home.path.chmod(0o700)
    yield Lab(home, built)
    cgroups = Cgroups(ROOT, home.mark)

    def left() -> dict[str, object]:
        return {
            "groups": cgroups.ids() - {"wasm-monitors"},
            "mounts": [entry.point for entry in mounts.below(home.path)],
            "processes": marked(home.mark),
            "written down": sorted(path.name for path in (home.state / "wasm").glob("*")),
            "run": sorted(path.name for path in (home.run / "wasm").glob("*")),
            "half-made": sorted(path.name for path in (home.state / "wasm-modules").glob("*.new")),
        }

    # What was killed at the very end may take a moment to be gone.
    deadline = time.monotonic() + 90
    while any((found := left()).values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    cgroups.remove()
    assert not any(found.values()), found


@pytest.fixture
async def driver(lab: Lab) -> AsyncIterator[WasmDriver]:
    driver = lab.driver()
    capabilities = await driver.open()
    assert capabilities[0].name == "compute.wasm" and capabilities[0].available, capabilities[0].reason
    yield driver
    for id in await driver.inventory():
        await driver.remove(id)
    await driver.close()
