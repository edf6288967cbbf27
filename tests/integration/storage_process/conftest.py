"""A storage process in a home of its own; whatever a test leaves behind fails it."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop

from lamella.host.compute.driver import Home
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import marked
from lamella.host.storage.process.daemon import QemuStorageDaemon


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home", f"lamella-test-sp{os.getpid()}")
    home.run.mkdir(parents=True)
    home.path.chmod(0o700)
    yield home
    left = {
        "groups": Cgroups(ROOT, home.mark).ids(),
        "mounts": [entry.point for entry in mounts.below(home.path)],
        "processes": marked(home.mark),
        "files": [str(path.relative_to(home.run)) for path in (home.run / "storage").rglob("*") if not path.is_dir()],
    }
    Cgroups(ROOT, home.mark).remove()
    assert not any(left.values()), left


@pytest.fixture
async def daemon(home: Home) -> AsyncIterator[QemuStorageDaemon]:
    daemon = QemuStorageDaemon(home)
    assert await daemon.open() == ""
    yield daemon
    await daemon.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No Python signal handler runs while uvloop waits, so pytest-timeout's alarm would never go off here: a thread ends the run."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600, method="thread"))


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()
