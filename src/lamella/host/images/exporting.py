"""An image's disk, CD, module or kernel on its way out: as it is, or converted in scratch by the same locked-up converter."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from lamella.host.images.content import CONVERTER, Content
from lamella.host.images.copying import new_file
from lamella.host.images.formats.convert import FORMATS, Input, convert
from lamella.host.images.layers import check_room
from lamella.host.images.tape import Bounds
from lamella.model.errors import Invalid
from lamella.model.image import Artifact, ArtifactKind, ImageStatus

_PIECE = 1 << 20
_AS_IT_IS = "file"
_RAW = "raw"


def choose(status: ImageStatus, format: str) -> Artifact:
    """What of the image goes out as *format*.

    :raise Invalid: when it has nothing of the kind, or *format* is not known.
    """
    formats = [*FORMATS, _RAW]
    if format not in (*formats, _AS_IT_IS):
        raise Invalid(
            f"{format!r} is not a format that images are exported in",
            hint=f"a disk: {', '.join(formats)}; a module, kernel or CD: {_AS_IT_IS}",
            field="format",
        )
    plain = (ArtifactKind.MODULE, ArtifactKind.KERNEL, ArtifactKind.CDROM)
    kinds = plain if format == _AS_IT_IS else (ArtifactKind.DISK,)
    found = next((one for one in status.artifacts if one.kind in kinds), None)
    if found is None:
        has = ", ".join(one.kind for one in status.artifacts) or "layers alone"
        hint = (
            f"ask for {_AS_IT_IS}"
            if any(one.kind in plain for one in status.artifacts)
            else "only a disk, a module, a kernel or a CD goes out as one file"
            if not status.artifacts
            else f"a disk goes out as {', '.join(formats)}"
        )
        raise Invalid(f"the image has no {' or '.join(kinds)} but {has}", hint=hint, field="format")
    return found


class Exporter:
    """Streams of artifacts of *content*; our processes bear *mark*."""

    def __init__(self, content: Content, bounds: Bounds, mark: str) -> None:
        self._content = content
        self._bounds = bounds
        self._mark = mark

    async def stream(self, artifact: Artifact, format: str, scratch: Path) -> AsyncGenerator[bytes, None]:
        """The bytes of *artifact* as *format*; *scratch* is for a file between, which goes with it.

        :raise OSError: when the file between finds no room.
        """
        path = self._content.artifact(artifact.digest)
        if format in FORMATS:
            path = await self._converted(path, artifact.size, format, scratch)
        descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            offset = 0
            while piece := await asyncio.to_thread(os.pread, descriptor, _PIECE, offset):
                yield piece
                offset += len(piece)
        finally:
            os.close(descriptor)

    async def _converted(self, path: Path, size: int, format: str, scratch: Path) -> Path:
        target, room = scratch / "export", scratch / "room"
        room.mkdir()
        await asyncio.to_thread(new_file, target, 0, CONVERTER)
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await convert(
                Input(path=path, driver="raw", size=size, length=size),
                target,
                FORMATS[format],
                room=room,
                mark=self._mark,
                name="the image's disk",
                progress=lambda _count: check_room(descriptor, self._bounds),
            )
        finally:
            os.close(descriptor)
        return target
