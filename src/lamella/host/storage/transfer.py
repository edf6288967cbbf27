"""Disks of other programs into volumes, and volumes out as files that other programs read.

What is read is a stranger's, so it is recognised by its content, its header is checked, and a locked-up qemu-img(1) reads it
(:mod:`lamella.host.images.formats.convert`). It writes straight to the volume as a file: nothing lies in between, and zeros stay holes.
"""

import asyncio
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from lamella.host.images.content import CONVERTER
from lamella.host.images.copying import copy_section, new_file, readable_by
from lamella.host.images.formats import ova, ovf
from lamella.host.images.formats.convert import FORMATS, Input, convert
from lamella.host.images.formats.disk import DiskHeader
from lamella.host.images.formats.recognise import Form, disk_header
from lamella.host.images.layers import check_room, decompress_section
from lamella.host.images.machines import Stretch, form_of, whole_file
from lamella.host.images.tape import Bounds, Compression, sniff
from lamella.host.images.thread import stoppable
from lamella.host.linux.blocking import blocking
from lamella.host.storage.blocks import Stack
from lamella.host.storage.creating import Creating
from lamella.host.storage.parts import Locks, Parts
from lamella.host.storage.requests import Tell
from lamella.model.errors import Conflict, Internal, Invalid, NoRoom, NotFound
from lamella.model.quantity import format_size
from lamella.model.replication_requests import DigestExport, ExportedDigest
from lamella.model.storage import IoLimits, Volume, VolumeForm, VolumeStatus
from lamella.model.storage_requests import CreateVolume, ImportVolume

RAW = "raw"
# force_size: without it a VHD is rounded to what cylinders, heads and sectors can say.
# block_size: a VHDX takes room in blocks of 8 MiB and more, if nobody says (1 MiB is what Hyper-V's pages recommend for Linux).
OUTPUTS = {
    **FORMATS,
    "vhd": ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"],
    "vhdx": ["-O", "vhdx", "-o", "subformat=dynamic,block_size=1M"],
}
# What QEMU calls what people call otherwise.
_CALLED = {"vpc": "vhd", "vhdx": "vhdx"}
_PIECE = 1 << 20
_numbers = itertools.count(1)
_INTO = ["-n", "-O", "raw"]
_INTO_ZEROS = ["-n", "--target-is-zero", "-O", "raw"]


class Transfer:
    """Answers ImportVolume and DigestExport, and streams exports."""

    def __init__(self, parts: Parts, creating: Creating) -> None:
        self._parts = parts
        self._creating = creating
        self._bounds = Bounds()
        # Of its own: what makes and fills a volume holds the wing's.
        self._imports = Locks()
        self._digests: dict[tuple[str, str, str], ExportedDigest] = {}
        parts.requests.serve(ImportVolume, self.take)
        parts.requests.serve(DigestExport, self.digest)

    # --- in

    async def take(self, request: ImportVolume, tell: Tell) -> VolumeStatus:
        """:class:`ImportVolume`. The volume is made as large as the disk, if its spec names no size.

        :raise NotFound: when there is no such file. :raise Corrupt: when it is damaged or lies.
        :raise Invalid: when it is no disk, of another format than was said, or larger than the volume.
        """
        if request.volume.spec.form is not VolumeForm.BLOCK:
            raise Invalid("a disk goes into a block volume", hint="--form block", field="form")
        # Whoever asks again did not hear of it: the first may still go on.
        async with self._imports.of([request.volume.id]):
            return await self._take(request, tell)

    async def _take(self, request: ImportVolume, tell: Tell) -> VolumeStatus:
        volume, parts = request.volume, self._parts
        made = parts.stacks.made(volume.id)
        if made.filled:
            return await self._creating.status(volume)
        await parts.require_closed(volume, "imported")
        with tempfile.TemporaryDirectory(prefix="import-", dir=self._scratch()) as place:
            file = await self._plain(await self._disk_of(request), Path(place), tell)
            header = await blocking(file.look, disk_header)
            _check_format(request, header)
            room = volume.spec.size or header.size
            if room < header.size:
                raise Invalid(
                    f"the disk has {format_size(header.size)} and the volume {format_size(room)}",
                    hint="leave the size out, or give a larger one",
                    field="size",
                )
            bare = msgspec.structs.replace(volume.spec, size=room, filesystem="")
            bare_volume = msgspec.structs.replace(volume, spec=bare)
            if volume.id in await parts.pools.get(volume.spec.pool).inventory():
                # A former try ended halfway: what it wrote could show through the holes of another file.
                await parts.pools.get(volume.spec.pool).delete(volume.id)
                made.encrypted = False
                await blocking(parts.records.made.write, volume.id, made)
            await self._creating.create(CreateVolume(volume=bare_volume), _unheard)
            await self._fill(bare_volume, file, header, Path(place), tell)
        made = parts.stacks.made(volume.id)
        # Whoever made its filesystem was somebody else.
        made.filled, made.formatted, made.strange = True, True, True
        await blocking(parts.records.made.write, volume.id, made)
        return await self._creating.status(bare_volume)

    async def _disk_of(self, request: ImportVolume) -> Stretch:
        """Where the disk's bytes are: the file, or the first disk in an OVA."""
        path = Path(request.path)
        form = await blocking(form_of, path, path.name)
        if form is Form.DISK or (form is Form.ARCHIVE and request.format == RAW):
            return await blocking(whole_file, path, path.name)
        if form is Form.OVF:
            return await blocking(_first_disk, path)
        if form is Form.ARCHIVE:
            # A disk without a partition table has no mark of its own: compressed ones and raw ones are told by trying.
            return await blocking(whole_file, path, path.name)
        raise Invalid(f"{path.name} is a {form}, not a disk", hint="lamella image import takes it", field="path")

    async def _plain(self, file: Stretch, place: Path, tell: Tell) -> Stretch:
        """*file*, decompressed if it is compressed, where the converter may read it."""
        head = await blocking(file.look, lambda window: window.some(0, 16))
        if sniff(head) is not Compression.NONE:
            tell("decompress", 0, file.length, "bytes")
            plain = place / "plain"
            await stoppable(
                lambda stop: decompress_section(file.section(), plain, self._bounds, lambda _count: None, stop)
            )
        elif ":" in str(file.path) or not await blocking(readable_by, file.path, CONVERTER):
            plain, done = place / "plain", 0

            def told(count: int) -> None:
                nonlocal done
                done += count
                tell("read", done, file.length, "bytes")

            await stoppable(lambda stop: copy_section(file.section(), plain, self._bounds, stop, told))
        else:
            return file
        os.chown(plain, CONVERTER, CONVERTER)
        return Stretch(path=plain, name=file.name, offset=0, length=plain.stat().st_size)

    async def _fill(self, volume: Volume, file: Stretch, header: DiskHeader, place: Path, tell: Tell) -> None:
        source = Input(
            path=file.path,
            driver=header.driver,
            size=header.size,
            length=file.length,
            offset=file.offset,
            options=header.options,
        )
        room, done = place / "room", 0
        room.mkdir(exist_ok=True)
        # What was never written reads as zeros, but not through a cipher.
        output = _INTO if self._parts.stacks.encrypted(volume) else _INTO_ZEROS

        def told(count: int) -> None:
            nonlocal done
            done += count
            tell("copy", done, header.size, "bytes")

        async with self._parts.locks.of([volume.id]), self._parts.disk(volume) as target:
            await blocking(os.chown, target, CONVERTER, CONVERTER)
            try:
                await convert(
                    source, target, output, room=room, mark=self._parts.home.mark, name=file.name, progress=told
                )
                await self._parts.daemon.flush([volume.id])
            except OSError as error:
                raise NoRoom(f"pool {volume.spec.pool} is full", hint="lamella pool ls tells what is free") from error
            finally:
                await blocking(os.chown, target, 0, 0)

    # --- out

    async def export(self, volume: Volume, snapshot: str, format: str) -> AsyncGenerator[bytes, None]:
        """The bytes of *volume*, or of its *snapshot* (an id), as a file of *format*; their digest can be asked for afterwards.

        :raise Invalid: when nothing is written in *format*, or the volume is a directory.
        :raise Conflict: when it is being written; a snapshot of it is not.
        """
        if format != RAW and format not in OUTPUTS:
            raise Invalid(
                f"{format!r} is not a format that volumes are exported in",
                hint=f"one of: {', '.join([RAW, *OUTPUTS])}",
                field="format",
            )
        if volume.spec.form is not VolumeForm.BLOCK:
            raise Invalid(
                f"volume {volume.name} is a directory, and no disk", hint="lamella cp takes files out", field="form"
            )
        done, size = hashlib.sha256(), 0
        with tempfile.TemporaryDirectory(prefix="export-", dir=self._scratch()) as place:
            async with AsyncExitStack() as opened:
                path = await opened.enter_async_context(self._readable(volume, snapshot))
                if format != RAW:
                    path = await self._converted(path, format, Path(place))
                    # However long it takes to be read, the volume is free.
                    await opened.aclose()
                descriptor = await blocking(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    while piece := await blocking(os.pread, descriptor, _PIECE, size):
                        done.update(piece)
                        size += len(piece)
                        yield piece
                finally:
                    await blocking(os.close, descriptor)
        self._digests[volume.id, snapshot, format] = ExportedDigest(sha256=done.hexdigest(), size=size)

    async def digest(self, request: DigestExport, tell: Tell) -> ExportedDigest:
        """:class:`DigestExport`."""
        found = self._digests.get((request.volume.id, request.snapshot, request.format))
        if found is None:
            raise NotFound(f"volume {request.volume.name} was not exported lately", hint="export it again")
        return found

    @asynccontextmanager
    async def _readable(self, volume: Volume, snapshot: str) -> AsyncGenerator[Path]:
        """A file of it that is this export's alone. Nobody waits for its reader: whoever would change the volume meanwhile is refused."""
        parts = self._parts
        async with parts.locks.of([volume.id]):
            stack = await self._stack(volume, snapshot)
            read = volume.id if not snapshot else stack.id
            parts.readers[read] += 1
        stack = msgspec.structs.replace(stack, id=f"{stack.id}+export-{next(_numbers)}")
        try:
            await parts.daemon.add(stack)
            ways = await parts.daemon.export(stack.id, writable=False)
            if ways.file is None:
                raise Internal(f"the storage process gives no file for volume {volume.id}")
            yield ways.file
        finally:
            await asyncio.shield(self._let_go(stack.id, read))

    async def _let_go(self, id: str, read: str) -> None:
        try:
            await self._parts.daemon.remove(id)
        finally:
            self._parts.readers[read] -= 1

    async def _stack(self, volume: Volume, snapshot: str) -> Stack:
        """:raise Conflict: when the volume is being written."""
        parts = self._parts
        if snapshot:
            return await parts.stacks.of(volume, snapshot, read_only=True)
        try:
            await parts.require_unwritten(volume, "exported")
        except Conflict as error:
            raise Conflict(
                f"volume {volume.name} is being written",
                hint=f"lamella snapshot create {volume.name} now; lamella volume export {volume.name}@now",
            ) from error
        plain = await parts.stacks.of(volume, read_only=True)
        return msgspec.structs.replace(plain, limits=IoLimits(), group="")

    async def _converted(self, disk: Path, format: str, place: Path) -> Path:
        size = (await blocking(disk.stat)).st_size
        target, room = place / "export", place / "room"
        room.mkdir()
        await blocking(new_file, target, 0, CONVERTER)
        watched = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        await blocking(os.chown, disk, CONVERTER, CONVERTER)
        try:
            await convert(
                Input(path=disk, driver="raw", size=size, length=size),
                target,
                OUTPUTS[format],
                room=room,
                mark=self._parts.home.mark,
                name="the volume",
                progress=lambda _count: check_room(watched, self._bounds),
            )
        except OSError as error:
            raise NoRoom("this host has no room for the file between", hint="--format raw needs none") from error
        finally:
            os.close(watched)
        return target

    def _scratch(self) -> Path:
        place = self._parts.home.state / "storage" / "transfer"
        place.mkdir(mode=0o711, parents=True, exist_ok=True)
        return place

    def clear(self) -> None:
        """Files between that a former daemon left."""
        shutil.rmtree(self._parts.home.state / "storage" / "transfer", ignore_errors=True)


def _check_format(request: ImportVolume, header: DiskHeader) -> None:
    found = _CALLED.get(header.driver, header.driver)
    if request.format and request.format not in (found, header.driver):
        raise Invalid(
            f"{Path(request.path).name} is {found}, not {request.format}", hint="leave the format out", field="format"
        )


def _first_disk(path: Path) -> Stretch:
    """:raise Invalid: when the machine has no disk, or its files lie beside its description."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not ova.is_ova(descriptor):
            raise Invalid(f"{path.name} describes disks and holds none", hint="name the disk's own file", field="path")
        members = ova.members(descriptor, path.name)
        name = ova.descriptor_name(list(members), path.name)
        found = ovf.read(ova.document(descriptor, members[name], name), name)
    finally:
        os.close(descriptor)
    for disk in found.disks:
        if disk.file is not None and not disk.cdrom and disk.file.name in members:
            member = members[disk.file.name]
            return Stretch(path=path, name=disk.file.name, offset=member.offset, length=member.size)
    raise Invalid(f"{path.name} has no disk", hint="lamella image import takes whole machines", field="path")


def _unheard(step: str, done: int, total: int, unit: str) -> None:
    """For steps that nobody needs to hear of."""
