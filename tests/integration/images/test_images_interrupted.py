"""Cut short at any moment: by a person, or by the power."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tarballs
from registries import put
from tarballs import folder, member, names, tar

from lamella.host.images.disk import DiskLibrary
from lamella.host.images.library import Progress

pytestmark = pytest.mark.root
Report = Callable[[Progress], None]
LAYERS = [tar(folder(str(n)), *(member(f"{n}/{m}", os.urandom(40_000)) for m in range(60))) for n in range(3)]
IMPORT = """
import asyncio, sys
from pathlib import Path
from lamella.host.images.disk import DiskLibrary
async def main():
    library = DiskLibrary(Path(sys.argv[1]))
    await library.open()
    print("open", flush=True)
    await library.import_file(sys.argv[2], lambda progress: None)
asyncio.run(main())
"""


def consistent(path: Path) -> None:
    """Every layer that is in its place is whole, and has its record."""
    layers = {name for name in names(path / "layers") if not name.endswith(".json")}
    assert {f"{name}.json" for name in layers} == set(names(path / "layers")) - layers
    for name in layers:
        number = next(n for n, layer in enumerate(LAYERS) if tarballs.digest(layer).endswith(name))
        assert len(names(path / "layers" / name / str(number))) == 60


async def test_cancelled_at_any_moment(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], tmp_path: Path
) -> None:
    host, _ = open_registry
    tarballs.layout(tmp_path / "layout", LAYERS)
    put(host, "interrupted", "1", tmp_path / "layout")
    chance = random.Random(5)
    finished = 0
    for _ in range(40):
        pull = asyncio.create_task(library.pull(f"docker://{host}/interrupted:1", report))
        await asyncio.sleep(chance.random() * 0.3)
        pull.cancel()
        finished += not isinstance((await asyncio.gather(pull, return_exceptions=True))[0], asyncio.CancelledError)
        assert names(tmp_path / "images/scratch") == []
        consistent(tmp_path / "images")
        if chance.random() < 0.5:
            await library.collect(set())
            assert names(tmp_path / "images/partial") == names(tmp_path / "images/layers") == []
    assert finished < 40
    assert len((await library.pull(f"docker://{host}/interrupted:1", report)).layers) == 3


async def test_killed_at_any_moment(report: Report, tmp_path: Path) -> None:
    digest = tarballs.layout(tmp_path / "layout", LAYERS)
    path = tmp_path / "images"
    chance = random.Random(6)
    for _ in range(10):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IMPORT, str(path), str(tmp_path / "layout"), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None and await process.stdout.readline() == b"open\n"
        await asyncio.sleep(chance.random() * 0.25)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.communicate()
        again = DiskLibrary(path, grace=0)
        await again.open()
        assert names(path / "scratch") == []
        consistent(path)
        for image in await again.inventory():
            assert all(layer.is_dir() for layer in (await again.rootfs(image)).layers)
        if chance.random() < 0.5:
            await again.collect(set())
            assert names(path / "layers") == names(path / "blobs/sha256") == []
    library = DiskLibrary(path, grace=0)
    await library.open()
    assert (await library.import_file(str(tmp_path / "layout"), report)).digest == digest
