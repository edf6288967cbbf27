"""All images of a project, and how they come in."""

import builtins
from collections.abc import AsyncIterator, Sequence

from lamella.client import calls, routes
from lamella.client.aio.talk import Progress, Talk
from lamella.model.image import Image
from lamella.model.requests import ImageCreate


class Images:
    """``layer.images``. *progress* is called with where the operation stands, each time that changes."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    async def list(self) -> builtins.list[Image]:
        found, _ = await self._talk.find("image")
        return found

    async def get(self, name: str) -> Image:
        """:raise NotFound: when there is no such image."""
        return await self._talk.ask(calls.get(self._talk.project, "image", name))

    async def build(
        self,
        source: str,
        *,
        packages: Sequence[str] = (),
        disk: bool = False,
        name: str | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Build a distribution's image (``debian:12``) from its packages, with more *packages*; with *disk* a bootable disk, too."""
        return await self._bring(
            ImageCreate(verb="build", source=source, name=name, packages=[*packages], disk=disk), progress
        )

    async def pull(
        self,
        source: str,
        *,
        name: str | None = None,
        username: str = "",
        password: str = "",
        insecure: bool = False,
        progress: Progress | None = None,
    ) -> Image:
        """Fetch ``docker://HOST/NAME:TAG``."""
        body = ImageCreate(
            verb="pull", source=source, name=name, username=username, password=password, insecure=insecure
        )
        return await self._bring(body, progress)

    async def import_file(
        self, path: str, *, name: str | None = None, initrd: str = "", progress: Progress | None = None
    ) -> Image:
        """Import a file that lies at *path* on the daemon's host: an OCI layout, a docker archive, a root file system's tar, a disk
        (qcow2, raw, vmdk, vdi, vhdx, ova), a CD (iso), a WebAssembly module, a kernel (ELF) with its *initrd*."""
        return await self._bring(ImageCreate(verb="import", source=path, name=name, initrd=initrd), progress)

    async def export(self, name: str, *, format: calls.DiskFormat = "qcow2") -> AsyncIterator[bytes]:
        """The image's disk as a file of *format*, piece by piece."""
        async with self._talk.wire.stream(routes.export_image(self._talk.project, name, format=format)) as pieces:
            async for data in pieces:
                yield data

    async def remove(self, name: str) -> None:
        """Forget a name; :meth:`collect` frees what then nothing uses."""
        await self._talk.ask(calls.remove(self._talk.project, "image", name))

    async def collect(self) -> int:
        """Remove what no image and no instance uses; bytes that this freed."""
        return (await self._talk.ask(calls.collect_images())).bytes

    async def _bring(self, body: ImageCreate, progress: Progress | None) -> Image:
        operation = await self._talk.ask(calls.bring_image(self._talk.project, body))
        operation = await self._talk.follow(operation, progress)
        return await self._talk.ask(calls.image(self._talk.project, operation))
