"""One Debian with a bootable disk, built once for all the tests that need one: mmdebstrap takes a minute."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lamella.host.compute.driver import StoredArtifact
from lamella.host.images.disk import DiskLibrary
from lamella.model.image import ImageStatus


class Built(msgspec.Struct):
    """``library`` is the directory of a :class:`DiskLibrary` that holds it, ``root`` its unpacked layer, ``disk`` its raw disk."""

    library: Path
    status: ImageStatus
    root: Path
    disk: StoredArtifact


def build(path: Path, packages: Sequence[str] = ("nginx-light",)) -> Built:
    """Debian 12, with a small web server unless other *packages* are named, in a library at *path*."""

    async def make() -> Built:
        library = DiskLibrary(path)
        await library.open()
        status = await library.build("debian:12", lambda _progress: None, packages=list(packages), disk=True)
        rootfs = await library.rootfs(status.digest)
        return Built(library=path, status=status, root=rootfs.layers[0], disk=rootfs.artifacts[0])

    return asyncio.run(make())
