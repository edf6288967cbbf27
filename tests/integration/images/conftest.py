"""A library in a directory of its own, and registries to pull from."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registries import registry

from lamella.host.images.disk import DiskLibrary
from lamella.host.images.library import Progress


@pytest.fixture
async def library(tmp_path: Path) -> DiskLibrary:
    library = DiskLibrary(tmp_path / "images", grace=0)
    await library.open()
    return library


@pytest.fixture
def told() -> list[Progress]:
    return []


@pytest.fixture
def report(told: list[Progress]) -> Callable[[Progress], None]:
    return told.append


@pytest.fixture(scope="session")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    path = tmp_path_factory.mktemp("registry")
    with registry(path) as host:
        yield host, path


@pytest.fixture
def nothing_left(tmp_path: Path) -> Callable[[], list[str]]:
    """What lies in the library besides empty directories."""

    def look() -> list[str]:
        root = tmp_path / "images"
        return sorted(
            str(path.relative_to(root))
            for folder in root.iterdir()
            for path in folder.rglob("*")
            if path.name != "sha256"
        )

    return look
