"""How disks, CDs, modules and kernels get from a file of this host into the library: read, checked, converted, digested, stored."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from lamella.host.images.archive import Section
from lamella.host.images.content import CONVERTER, Content
from lamella.host.images.copying import copy_section, new_file, readable_by
from lamella.host.images.formats import elf, iso, ova, ovf, wasm
from lamella.host.images.formats.behind import flush, follow
from lamella.host.images.formats.convert import Input, convert
from lamella.host.images.formats.digest import digest_disk, tells_holes
from lamella.host.images.formats.recognise import Form, disk_header, recognise
from lamella.host.images.formats.window import Window
from lamella.host.images.holds import Hold, Turns
from lamella.host.images.layers import check_room, decompress_section
from lamella.host.images.library import Report
from lamella.host.images.look import open_file
from lamella.host.images.manifest import Named
from lamella.host.images.meter import Meter
from lamella.host.images.tape import Bounds, Compression, sniff
from lamella.host.images.thread import stoppable, together
from lamella.model.errors import Corrupt, Invalid, NotFound, Unsupported
from lamella.model.image import Appliance, ArtifactKind

_LARGEST_INITRD = 4 << 30
_LARGEST_CDROM = 256 << 30
T = TypeVar("T")
Find = Callable[[str], "Stretch | None"]


class Stretch(msgspec.Struct, kw_only=True, frozen=True):
    """Where the bytes of one thing are: *length* bytes from *offset* of *path*. ``name`` is what a person calls it."""

    path: Path
    name: str
    offset: int
    length: int

    def section(self) -> Section:
        return Section(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), self.offset, self.length)

    def look(self, work: Callable[[Window], T]) -> T:
        """What *work* makes of it."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return work(Window.of_file(descriptor, self.name, self.offset, self.length))
        finally:
            os.close(descriptor)


def whole_file(path: Path, name: str) -> Stretch:
    """All of the file *path*; as :func:`~lamella.host.images.look.open_file` otherwise."""
    descriptor = open_file(path)
    try:
        return Stretch(path=path, name=name, offset=0, length=os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def form_of(path: Path, name: str) -> Form:
    """What the file *path* is; an archive that is an OVA counts as :attr:`Form.OVF`."""
    file = whole_file(path, name)
    form = file.look(recognise)
    if form is Form.ARCHIVE and file.length:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return Form.OVF if ova.is_ova(descriptor) else form
        finally:
            os.close(descriptor)
    return form


class Machines:
    """Everything that becomes an artifact of *content*. *bounds* are kept while it is written; our processes bear *mark*."""

    def __init__(self, content: Content, turns: Turns, bounds: Bounds, mark: str) -> None:
        self._content = content
        self._turns = turns
        self._bounds = bounds
        self._mark = mark

    async def take(
        self, hold: Hold, form: Form, path: Path, name: str, initrd: str, scratch: Path, report: Report
    ) -> tuple[list[Named], Appliance | None]:
        """Store what the file *path* (a person's *name*) of *form* holds.

        :raise Invalid: when *initrd* is given with anything but a kernel.
        :raise Corrupt: when it is damaged, lies, or names what it may not.
        :raise Unsupported: when it is of a kind or size that is not taken.
        """
        if initrd and form is not Form.KERNEL:
            raise Invalid(f"{name} is not a kernel, and has no initrd", hint="leave the initrd out", field="initrd")
        if form is Form.OVF:
            return await self._machine(hold, path, name, scratch, report)
        file = await asyncio.to_thread(whole_file, path, name)
        if form is Form.DISK:
            return [await self._disk(hold, file, scratch, report)], None
        if form is Form.CDROM:
            return [await self._cdrom(hold, file, scratch, report)], None
        if form is Form.MODULE:
            await asyncio.to_thread(file.look, _check_module)
            return [await self._file(hold, ArtifactKind.MODULE, file, scratch, report)], None
        await asyncio.to_thread(file.look, _check_kernel)
        artifacts = [await self._file(hold, ArtifactKind.KERNEL, file, scratch, report)]
        if initrd:
            second = await asyncio.to_thread(whole_file, Path(initrd), initrd)
            if not 0 < second.length <= _LARGEST_INITRD:
                raise Invalid(f"{initrd} is {second.length} bytes", hint="name the kernel's initrd", field="initrd")
            artifacts.append(await self._file(hold, ArtifactKind.INITRD, second, scratch, report))
        return artifacts, None

    async def take_module(self, hold: Hold, section: Section, digest: str, scratch: Path, report: Report) -> Named:
        """Store the WebAssembly module that *section* holds and *digest* names.

        :raise Corrupt: when it is another, or torn.
        """
        target = scratch / "module"
        meter = Meter(report, "copying", section.size)
        found = await stoppable(lambda stop: copy_section(section, target, self._bounds, stop, meter.add))
        if found != digest:
            raise Corrupt(f"the module {digest} is not what its digest names", hint="the image is damaged or lies")
        return await self.adopt_module(hold, target, digest)

    async def adopt_module(self, hold: Hold, file: Path, digest: str) -> Named:
        """*file*, which *digest* is known to name, becomes a module, and is gone.

        :raise Corrupt: when it is none.
        """
        module = await asyncio.to_thread(whole_file, file, f"the module {digest[:19]}")
        await asyncio.to_thread(module.look, _check_module)
        return await self.store(hold, ArtifactKind.MODULE, digest, module.length, file)

    async def store_disk(self, hold: Hold, file: Path, report: Report, known: dict[int, bytes] | None = None) -> Named:
        """The raw disk *file*, in scratch and written by nobody any more, becomes an artifact; *file* is gone then.

        *known* are the chunks that were hashed already.
        """
        size = file.stat().st_size
        meter = Meter(report, "digesting", size)

        def digest(stop: threading.Event) -> str:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return digest_disk(descriptor, size, stop, meter.add, known=known)
            finally:
                os.close(descriptor)

        return await self.store(hold, ArtifactKind.DISK, await stoppable(digest), size, file)

    async def store(self, hold: Hold, kind: ArtifactKind, digest: str, size: int, file: Path) -> Named:
        """*file*, whose content *digest* names, takes its place unless that is there already."""
        await hold.add(digest)
        async with self._turns.of(digest):
            if self._content.has_artifact(digest):
                await asyncio.to_thread(file.unlink)
            else:
                await stoppable(lambda _stop: self._content.commit_artifact(digest, file))
        return Named(kind=kind, digest=digest, size=size)

    # One thing of each kind

    async def _disk(self, hold: Hold, file: Stretch, scratch: Path, report: Report) -> Named:
        file = await self._plain(file, scratch, report)
        header = await asyncio.to_thread(file.look, disk_header)
        if not await asyncio.to_thread(readable_by, file.path, CONVERTER):
            file = await self._copied(file, scratch, report)
        source = Input(
            path=_without_colon(file.path, scratch),
            driver=header.driver,
            size=header.size,
            length=file.length,
            offset=file.offset,
            options=header.options,
        )
        target, room = scratch / "disk", scratch / "room"
        room.mkdir(exist_ok=True)
        chunks = await self._convert(source, target, room, file.name, report)
        found = target.stat().st_size
        if found != header.size:
            raise Corrupt(
                f"{file.name} holds {found} bytes and its header says {header.size}", hint="copy or export it again"
            )
        return await self.store_disk(hold, target, report, chunks)

    async def _convert(self, source: Input, target: Path, room: Path, name: str, report: Report) -> dict[int, bytes]:
        """Make *target* of *source*, and the digests of its chunks as far as they could be had beside it."""
        await asyncio.to_thread(new_file, target, source.size, CONVERTER)
        meter = Meter(report, "converting", source.size)
        written, chunks = threading.Event(), dict[int, bytes]()
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)

        def progress(count: int) -> None:
            meter.add(count)
            check_room(descriptor, self._bounds)

        async def converting() -> None:
            try:
                await convert(source, target, ["-O", "raw"], room=room, mark=self._mark, name=name, progress=progress)
            finally:
                written.set()

        async def hashing() -> None:
            chunks.update(await stoppable(lambda stop: follow(target, source.size, written, stop)))

        async def flushing() -> None:
            await stoppable(lambda stop: flush(target, written, stop))

        try:
            if not await asyncio.to_thread(tells_holes, descriptor):
                await together([flushing(), converting()])
                return {}
            await together([hashing(), flushing(), converting()])
            return chunks
        finally:
            os.close(descriptor)

    async def _cdrom(self, hold: Hold, file: Stretch, scratch: Path, report: Report) -> Named:
        if file.length > _LARGEST_CDROM:
            raise Unsupported(f"{file.name} is {file.length} bytes", hint="no disc holds so much")
        await asyncio.to_thread(file.look, iso.check)
        return await self._file(hold, ArtifactKind.CDROM, file, scratch, report)

    async def _file(self, hold: Hold, kind: ArtifactKind, file: Stretch, scratch: Path, report: Report) -> Named:
        """As it is, under the SHA-256 of its bytes."""
        target = scratch / "file"
        meter = Meter(report, "copying", file.length)
        digest = await stoppable(lambda stop: copy_section(file.section(), target, self._bounds, stop, meter.add))
        if target.stat().st_size != file.length:
            raise Corrupt(f"{file.name} changed while it was read", hint="import it when nobody writes it")
        return await self.store(hold, kind, digest, file.length, target)

    async def _plain(self, file: Stretch, scratch: Path, report: Report) -> Stretch:
        """*file*, decompressed to scratch if it is compressed."""
        head = await asyncio.to_thread(file.look, lambda window: window.some(0, 16))
        if sniff(head) is Compression.NONE:
            return file
        plain = scratch / "plain-disk"
        meter = Meter(report, "decompressing", file.length)
        await stoppable(lambda stop: decompress_section(file.section(), plain, self._bounds, meter.add, stop))
        os.chown(plain, CONVERTER, CONVERTER)
        return Stretch(path=plain, name=file.name, offset=0, length=plain.stat().st_size)

    async def _copied(self, file: Stretch, scratch: Path, report: Report) -> Stretch:
        """A copy of *file* that whoever converts may read; the person's own keeps its owner and mode."""
        copy = scratch / "input"
        meter = Meter(report, "copying", file.length)
        await stoppable(lambda stop: copy_section(file.section(), copy, self._bounds, stop, meter.add))
        os.chown(copy, CONVERTER, CONVERTER)
        return Stretch(path=copy, name=file.name, offset=0, length=copy.stat().st_size)

    # OVF and OVA

    async def _machine(
        self, hold: Hold, path: Path, name: str, scratch: Path, report: Report
    ) -> tuple[list[Named], Appliance]:
        """A machine as OVF describes it: an archive of everything, or a descriptor with its files beside it."""
        find, main = await asyncio.to_thread(_parts, path, name)
        data = await asyncio.to_thread(main.look, lambda window: window.at(0, window.size))
        found = ovf.read(data, main.name)
        await self._verify(find, main, name, report)
        artifacts: list[Named] = []
        for number, disk in enumerate(found.disks):
            room = scratch / f"disk-{number}"
            room.mkdir()
            if disk.file is None:
                assert disk.capacity is not None
                size = -(-disk.capacity // 512) * 512
                await asyncio.to_thread(new_file, room / "empty", size, 0)
                artifacts.append(await self.store_disk(hold, room / "empty", report))
                continue
            part = _part(find, disk.file.name, main)
            if disk.file.size is not None and disk.file.size != part.length:
                raise Corrupt(
                    f"{part.name} is {part.length} bytes, and {main.name} says {disk.file.size}", hint="export it again"
                )
            take = self._cdrom if disk.cdrom else self._disk
            artifacts.append(await take(hold, part, room, report))
        return artifacts, found.appliance

    async def _verify(self, find: Find, main: Stretch, name: str, report: Report) -> None:
        """Everything that the manifest beside the descriptor tells a digest of."""
        manifest = find(f"{Path(main.name).stem}.mf")
        if manifest is None:
            return
        told = ova.digests(
            await asyncio.to_thread(manifest.look, lambda window: window.at(0, window.size)), manifest.name
        )
        listed = {member: _part(find, member, manifest) for member in told}
        meter = Meter(report, "verifying", sum(part.length for part in listed.values()))

        def verify(part: Stretch, wanted: tuple[str, str], stop: threading.Event) -> None:
            descriptor = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                member = ova.Member(offset=part.offset, size=part.length)
                ova.verify(descriptor, member, wanted, part.name, stop, meter.add)
            finally:
                os.close(descriptor)

        for member, part in listed.items():
            await stoppable(lambda stop, p=part, w=told[member]: verify(p, w, stop))


def _check_module(window: Window) -> None:
    if window.some(0, 4) != wasm.MAGIC:
        raise window.damaged("it is not WebAssembly")
    wasm.check(window)


def _check_kernel(window: Window) -> None:
    if window.size > elf.LARGEST_KERNEL:
        raise Unsupported(f"{window.name} is {window.size} bytes", hint="no kernel is so big")
    if window.some(0, 4) == elf.MAGIC:
        elf.read(window)


def _parts(path: Path, name: str) -> tuple[Find, Stretch]:
    """How the files of a machine are found by name, and its descriptor."""
    file = whole_file(path, name)
    if file.look(recognise) is not Form.ARCHIVE:
        return _beside(path.parent), file
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        members = ova.members(descriptor, name)
    finally:
        os.close(descriptor)
    parts = {
        member: Stretch(path=path, name=member, offset=found.offset, length=found.size)
        for member, found in members.items()
    }
    return parts.get, parts[ova.descriptor_name(list(parts), name)]


def _beside(folder: Path) -> Find:
    """Files in a directory, by name; no link is followed."""

    def find(name: str) -> Stretch | None:
        path = folder / name
        if path.is_symlink():
            raise Corrupt(f"{path} is a link", hint="put the file itself beside its descriptor")
        try:
            return whole_file(path, str(path))
        except NotFound:
            return None

    return find


def _part(find: Find, name: str, by: Stretch) -> Stretch:
    part = find(ovf.check_name(name, by.name))
    if part is None:
        raise Corrupt(f"{by.name} names {name!r}, which is not there", hint="copy or export the whole machine again")
    return part


def _without_colon(path: Path, scratch: Path) -> Path:
    """*path* as the jailer can be told it: it takes a colon for the end of a path."""
    if ":" not in str(path):
        return path
    link = scratch / "link"
    link.symlink_to(path.absolute())
    return link
