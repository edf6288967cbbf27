"""Each test of this folder runs in a process of its own that joins a room of its own: the machine's namespaces stay untouched."""

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from _pytest.runner import SetupState, runtestprotocol
from oci_lab import Lab, busybox

from lamella.host.compute.driver import Home
from lamella.host.compute.oci.driver import OciDriver
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import marked
from lamella.host.linux.room import Room

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run the test in a child and bring its reports back. pytest asks this of every test of a run: others are not ours."""
    if not item.path.is_relative_to(HERE):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _in_child(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _in_child(item: pytest.Item) -> list[Any]:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        # The alarm of pytest-timeout did not come along, its handler did: a test that hangs fails here, and cleans up.
        signal.alarm(90)
        # What the run has set up belongs to the parent: this child must not take it down when its one test has ended.
        item.session._setupstate = SetupState()
        try:
            reports = runtestprotocol(item, nextitem=None, log=False)
            rows = [item.config.hook.pytest_report_to_serializable(config=item.config, report=one) for one in reports]
            with os.fdopen(write_end, "w") as file:
                json.dump(rows, file, default=str)
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as file:
            text = file.read()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not text:
        pytest.exit(f"{item.nodeid} ended without a report", returncode=1)
    make = item.config.hook.pytest_report_from_serializable
    return [make(config=item.config, data=row) for row in json.loads(text)]


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> None:
    """In place of the whole run's look at the machine: a session here is one test, and :func:`lab` looks at its own mark alone."""


def names(folder: Path) -> list[str]:
    """What is in *folder*, but for the runtime's cache of seccomp filters."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name != ".cache") if folder.is_dir() else []


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A room of its own, entered; at the end nothing may be left in it."""
    home = Home(tmp_path / "home", f"lamella-test-{os.getpid()}")
    home.state.mkdir(parents=True)
    home.path.chmod(0o700)
    room = Room(home)
    room.ensure()
    try:
        room.join()
    except BaseException:
        room.destroy()
        raise
    lower, upper = home.state / "layers" / "lower", home.state / "layers" / "upper"
    busybox(lower)
    upper.mkdir()
    (upper / "hello").write_text("from the upper layer\n")
    yield Lab(home, [upper, lower])
    cgroups = Cgroups(ROOT, home.mark)
    left = {
        "groups": cgroups.ids() - {"shims"},
        # The room keeps its network there, for as long as there is a room.
        "mounts": [entry.point for entry in mounts.below(home.path) if entry.point != str(home.run / "room.net")],
        "processes": marked(home.mark) - {room.holder(), os.getpid()},
        "bundles": names(home.run / "oci"),
        "exits": names(home.run / "oci-exits"),
        "states": names(home.run / "oci-runtime"),
        "logs": names(home.state / "oci-logs"),
    }
    cgroups.remove()
    mounts.release(home.path)
    room.destroy()
    assert {name: value for name, value in left.items() if value} == {}


@pytest_asyncio.fixture
async def driver(lab: Lab) -> AsyncIterator[OciDriver]:
    """An open driver; whatever the test leaves running is removed."""
    driver = lab.driver()
    capabilities = await driver.open()
    assert capabilities[0].name == "compute.container"
    assert capabilities[0].available, capabilities[0].reason
    yield driver
    for id in await driver.inventory():
        await driver.remove(id)
    await driver.close()
