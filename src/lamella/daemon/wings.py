"""Which drivers a host has: found by entry point, so that adding one touches its own folder and one line of registration."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lamella.host.agent import Agent
from lamella.host.compute.driver import Changed, ComputeDriver, Home
from lamella.host.images.disk import DiskLibrary
from lamella.host.linux.room import Room
from lamella.host.storage.volumes import MakePool, Volumes

NETWORK = "bridge"

Make = Callable[[Changed], ComputeDriver]


def build_agent(home: Home, name: str, *, address: str = "", underlay: str = "") -> Agent:
    """The agent of this machine with every registered driver. The room was made and joined before."""
    storage = {name: _pool_maker(entry) for name, entry in _by_name("lamella.storage").items()}
    network: Any = _by_name("lamella.network")[NETWORK].load()
    return Agent(
        home,
        name,
        drivers=compute_drivers(home),
        network=network(home, Room(home).netns, underlay=underlay),
        storage=Volumes(home, storage),
        library=DiskLibrary(home.state / "images", mark=home.mark),
        address=address,
    )


def _pool_maker(entry: EntryPoint) -> MakePool:
    return lambda path, options: entry.load()(path, options)


def compute_drivers(home: Home) -> Mapping[str, Make]:
    """Every registered isolation level with what makes its driver."""

    def maker(entry: EntryPoint) -> Make:
        return lambda changed: entry.load()(home, changed)

    return {name: maker(entry) for name, entry in _by_name("lamella.compute").items()}


def _by_name(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}
