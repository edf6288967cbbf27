"""Debian made of packages, from the mirror that this host's apt uses."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.host.images.disk import DiskLibrary
from lamella.host.images.library import Progress

pytestmark = pytest.mark.root
Report = Callable[[Progress], None]


@pytest.mark.timeout(600)
async def test_debian_is_built(library: DiskLibrary, report: Report, told: list[Progress], tmp_path: Path) -> None:
    status = await library.build("debian:12", report, packages=["netbase"])
    assert status.config.command == ["bash"]
    (root,) = (await library.rootfs(status.digest)).layers
    assert 'VERSION_ID="12"' in (root / "etc/os-release").read_text()
    assert (root / "usr/bin/bash").exists() and (root / "etc/protocols").exists()
    assert not list((root / "var/lib/apt/lists").glob("*Packages*")) and not list(
        (root / "usr/share/man").glob("man*/*")
    )
    assert not (root / "etc/apt/apt.conf.d/99mmdebstrap").exists()
    assert not [path for path in (root / "dev").iterdir() if path.is_char_device() and not path.is_symlink()]
    assert "bookworm-security" in (root / "etc/apt/sources.list").read_text()
    assert {"downloading packages with apt", "installing essential packages", "unpacking"} <= {one.step for one in told}
    assert not list((tmp_path / "images/scratch").iterdir())


@pytest.mark.timeout(600)
async def test_a_cancelled_build_leaves_nothing(library: DiskLibrary, nothing_left: Callable[[], list[str]]) -> None:
    """No file, no process, no mount: apt and dpkg below it too."""
    begun = asyncio.Event()

    def hear(progress: Progress) -> None:
        if progress.step.startswith("extracting"):
            begun.set()

    build = asyncio.create_task(library.build("debian:12", hear, packages=[]))
    hearing = asyncio.create_task(begun.wait())
    await asyncio.wait({build, hearing}, return_when=asyncio.FIRST_COMPLETED)
    assert begun.is_set()
    await asyncio.sleep(1)
    build.cancel()
    with pytest.raises(asyncio.CancelledError):
        await build
    assert nothing_left() == []
    path = str(library.path)
    assert path not in Path("/proc/self/mounts").read_text()
    assert not [found for found in Path("/proc").glob("[0-9]*/environ") if path in readable(found)]


def readable(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
