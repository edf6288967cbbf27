"""What is kept and what goes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import tarballs
from tarballs import member, tar

from lamella.host.images.disk import DiskLibrary
from lamella.host.images.library import Progress
from lamella.model.errors import NotFound

pytestmark = pytest.mark.root
Report = Callable[[Progress], None]
Look = Callable[[], list[str]]
BASE = tar(member("base", b"b" * 10_000))


async def both(library: DiskLibrary, report: Report, tmp_path: Path) -> tuple[str, str]:
    digests = []
    for name in ("left", "right"):
        tarballs.layout(tmp_path / name, [BASE, tar(member(name, b"1"))])
        digests.append((await library.import_file(str(tmp_path / name), report)).digest)
    return digests[0], digests[1]


async def test_shared_layers_stay_while_one_image_needs_them(
    library: DiskLibrary, report: Report, tmp_path: Path, nothing_left: Look
) -> None:
    left, right = await both(library, report, tmp_path)
    (library.derived(left) / "disk").write_bytes(b"1" * 100_000)
    (library.derived(right) / "disk").write_bytes(b"1" * 100_000)
    assert await library.collect({left, right}) == 0
    assert await library.collect({left}) > 100_000
    assert await library.inventory() == {left}
    rootfs = await library.rootfs(left)
    assert all(layer.is_dir() for layer in rootfs.layers) and (library.derived(left) / "disk").exists()
    with pytest.raises(NotFound):
        await library.rootfs(right)
    with pytest.raises(NotFound):
        library.derived(right)
    assert len(list((tmp_path / "images/layers").glob("*.json"))) == 2
    assert await library.collect(set()) > 100_000
    assert nothing_left() == []


async def test_what_came_lately_stays_until_it_is_named(report: Report, tmp_path: Path) -> None:
    library = DiskLibrary(tmp_path / "images", grace=60)
    await library.open()
    left, right = await both(library, report, tmp_path)
    assert await library.collect(set()) == 0
    await library.collect({left})
    assert await library.collect(set()) > 0
    assert await library.inventory() == {right}


async def test_collecting_takes_nothing_of_an_import_in_flight(
    library: DiskLibrary, report: Report, tmp_path: Path
) -> None:
    tarballs.layout(tmp_path / "l", [tar(member(str(number), bytes(200_000))) for number in range(12)])
    running = asyncio.create_task(library.import_file(str(tmp_path / "l"), report))
    while not running.done():
        await library.collect(set())
        await asyncio.sleep(0.002)
    status = running.result()
    again = await library.import_file(str(tmp_path / "l"), report)
    assert again == status
    assert all(layer.is_dir() for layer in (await library.rootfs(status.digest)).layers)


async def test_open_clears_what_a_crash_left(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    left, right = await both(library, report, tmp_path)
    path = tmp_path / "images"
    (path / "scratch/tmpabc/root/etc").mkdir(parents=True)
    (path / "layers" / ("0" * 64)).mkdir()
    (path / "layers" / f"{'1' * 64}.json").write_text("{}")
    (path / "partial" / ("2" * 64)).write_bytes(b"to be resumed")
    victim = (await library.rootfs(right)).layers[0]
    victim.rename(path / "scratch" / "half-removed")
    again = DiskLibrary(path, grace=0)
    await again.open()
    assert await again.inventory() == {left}
    assert not list((path / "scratch").iterdir())
    assert sorted(name.stem for name in (path / "layers").glob("*.json")) == sorted(
        name.name for name in (path / "layers").iterdir() if name.is_dir()
    )
    assert (path / "partial" / ("2" * 64)).exists()
    assert (await again.import_file(str(tmp_path / "right"), report)).digest == right
