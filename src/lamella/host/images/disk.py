"""The image library on this host's disk: every verb from beginning to end.

Layers are brought into ``scratch``, checked, and renamed into place; the record of an image is written last. So an image that
is listed is whole, and whatever is interrupted leaves only what :meth:`DiskLibrary.open` or :meth:`DiskLibrary.collect` clears.
"""

import asyncio
import contextlib
import errno
import os
import stat
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from lamella.host.compute.driver import Rootfs
from lamella.host.images import debian, layout, manifest
from lamella.host.images.archive import Directory, Section, Source, TarFile
from lamella.host.images.content import Content, LayerRecord, remove
from lamella.host.images.holds import Hold, Holds, Turns
from lamella.host.images.library import Credentials, Progress, Report
from lamella.host.images.manifest import Configuration, Descriptor, Index, Manifest
from lamella.host.images.meter import Meter
from lamella.host.images.reference import Reference, parse_reference
from lamella.host.images.registry import Registry
from lamella.host.images.tape import Bounds, Compression, Intake, Tape, decompress, sniff
from lamella.host.images.thread import stoppable, together
from lamella.host.images.unpack import Cancelled, Unpacked, unpack
from lamella.model.errors import Corrupt, Invalid, LamellaError, NoRoom, NotFound, Unavailable
from lamella.model.image import ImageStatus, Layer

_AT_ONCE = 3
_DEEPEST_INDEX = 4
_SHELLS = ("bash", "sh")


class DiskLibrary:
    """:class:`~lamella.host.images.library.ImageLibrary` under the directory *path*.

    *bounds* is what a layer may grow to, *grace* for how many seconds an image is kept that nobody has named yet, *mark* what
    our processes bear in their environment.
    """

    def __init__(self, path: Path, *, bounds: Bounds | None = None, grace: float = 60.0, mark: str = "") -> None:
        self.path = path
        self._content = Content(path)
        self._bounds = bounds or Bounds()
        self._mark = mark
        self._holds = Holds(grace)
        self._turns = Turns()

    async def open(self) -> None:
        """:raise Unavailable: when the directory cannot be used."""
        await asyncio.to_thread(self._content.open)

    async def pull(
        self, reference: str, report: Report, *, credentials: Credentials | None = None, insecure: bool = False
    ) -> ImageStatus:
        """As :meth:`ImageLibrary.pull`.

        :raise Invalid: when *reference* is none.
        :raise NotFound: when the registry has no such image.
        :raise Forbidden: when it does not let us read it, or leads to plain HTTP.
        :raise Unsupported: when the image is not for this host.
        :raise Corrupt: when what came is not what its digests and sizes say. Nothing of it stays.
        :raise Unavailable: when the registry does not answer; what came stays, and the next pull goes on there.
        """
        wanted = parse_reference(reference)
        report(Progress(step=f"asking {wanted.host}"))
        async with self._bringing() as hold, Registry(wanted, credentials, insecure=insecure) as registry:
            await registry.connect()
            data, found = await self._resolve(registry, wanted)
            digest = manifest.digest_of(data)
            await hold.add(digest, found.config.digest, *(layer.digest for layer in found.layers))
            if self._content.has_image(digest):
                return self._here(digest)
            configuration = await registry.document(found.config, "image's configuration")
            manifest.check_digest(configuration, found.config.digest, "image's configuration")
            parsed = manifest.read_configuration(configuration, len(found.layers))
            await hold.add(*parsed.rootfs.diff_ids)
            layers = dict(zip(parsed.rootfs.diff_ids, found.layers, strict=True))
            total = sum(layer.size for layer in layers.values())
            fetching = Meter(report, "fetching", total)
            unpacking = Meter(report, "unpacking", total, after=fetching)
            gate = asyncio.Semaphore(_AT_ONCE)
            await together(
                [self._fetch(registry, layer, diff_id, gate, fetching, unpacking) for diff_id, layer in layers.items()]
            )
            return await self._commit(hold, data, configuration, parsed)

    async def import_file(self, path: str, report: Report) -> ImageStatus:
        """As :meth:`ImageLibrary.import_file`; what it is, is told by its content.

        :raise NotFound: when nothing is there.
        :raise Invalid: when it is not an image, or holds several.
        :raise Unsupported: when the image is not for this host.
        :raise Corrupt: when it lies or is damaged.
        """
        report(Progress(step="looking"))
        source = Path(path)
        async with self._bringing() as hold, self._scratch() as scratch:
            if await asyncio.to_thread(source.is_dir):
                directory = await asyncio.to_thread(Directory, source)
                try:
                    found = await asyncio.to_thread(layout.find, directory)
                    if found is None:
                        raise Invalid(
                            f"{path} is not an image",
                            hint="an OCI layout or the tar of a root filesystem is",
                            field="source",
                        )
                    return await self._take(hold, directory, found, report)
                finally:
                    directory.close()
            size, compression = await asyncio.to_thread(_look, source)
            if compression is not Compression.NONE:
                meter, plain = Meter(report, "decompressing", size), scratch / "plain"
                await stoppable(lambda stop: self._decompress(source, plain, meter.add, stop))
                source = plain
            archive = await asyncio.to_thread(_archive, source, path)
            found = await asyncio.to_thread(layout.find, archive)
            if found is not None:
                return await self._take(hold, archive, found, report)
            return await self._adopt(hold, source, report)

    async def build(self, name: str, report: Report, *, packages: list[str]) -> ImageStatus:
        """As :meth:`ImageLibrary.build`.

        :raise Invalid: when *name* or a package cannot be built.
        :raise Unsupported: when mmdebstrap is not installed.
        :raise Unavailable: when the mirror cannot be reached.
        """
        wanted = debian.release(name)
        debian.check_packages(packages)
        async with self._bringing() as hold, self._scratch() as scratch:
            target = scratch / "root.tar"
            await debian.bootstrap(
                wanted, packages, target, scratch, lambda step: report(Progress(step=step, unit="")), self._mark
            )
            return await self._adopt(hold, target, report)

    async def rootfs(self, digest: str) -> Rootfs:
        status = self._content.image(digest)
        self._holds.known({digest})
        layers = [self._content.layer(layer.diff_id) for layer in reversed(status.layers)]
        return Rootfs(digest=digest, layers=layers, config=status.config)

    async def inventory(self) -> set[str]:
        return await asyncio.to_thread(self._content.image_digests)

    async def collect(self, keep: set[str]) -> int:
        """As :meth:`ImageLibrary.collect`. An image that came within the grace time stays, unless *keep* has named it before."""
        self._holds.known(keep)
        async with self._holds.settled:
            held = self._holds.held()
            return await stoppable(lambda _stop: self._collect(keep | self._holds.fresh() | held, held))

    def derived(self, digest: str) -> Path:
        """A directory for what is made once from the image *digest*; it goes when the image is collected.

        :raise NotFound: when the image is not here.
        """
        if not self._content.has_image(digest):
            raise NotFound(f"image {digest} is not on this host", hint="pull, import or build it first")
        folder = self._content.derived(digest)
        folder.mkdir(mode=0o711, exist_ok=True)
        return folder

    # How an image is brought

    async def _resolve(self, registry: Registry, wanted: Reference) -> tuple[bytes, Manifest]:
        """The manifest for this host, through as many indexes as lead to it."""
        version, expected = wanted.version, wanted.digest
        for _ in range(_DEEPEST_INDEX):
            data = await registry.manifest(version)
            if expected:
                manifest.check_digest(data, expected, "manifest")
            found = manifest.read_manifest(data, f"manifest of {wanted}")
            if isinstance(found, Manifest):
                return data, found
            version = expected = manifest.choose(found.manifests, str(wanted))[0].digest
        raise Corrupt(f"the indexes of {wanted} lead ever deeper", hint="the image contradicts itself")

    async def _fetch(
        self,
        registry: Registry,
        layer: Descriptor,
        diff_id: str,
        gate: asyncio.Semaphore,
        fetching: Meter,
        unpacking: Meter,
    ) -> None:
        async with self._turns.of(diff_id):
            if self._content.has_layer(diff_id):
                fetching.add(layer.size)
                unpacking.add(layer.size)
                return
            async with gate, self._turns.of(f"blob {layer.digest}"):
                blob = self._content.blob(layer.digest)
                if blob.exists():
                    fetching.add(layer.size)
                else:
                    await registry.download(layer, self._content.partial(layer.digest), fetching.add)
                    await stoppable(lambda _stop: self._content.commit_partial(layer.digest))
                async with self._scratch() as scratch:
                    done = await stoppable(
                        lambda stop: self._unpack(_whole(blob), scratch, stop, unpacking.add, diff_id=diff_id)
                    )
                    await self._place(scratch, done)
                blob.unlink(missing_ok=True)

    async def _take(self, hold: Hold, source: Source, found: layout.Found, report: Report) -> ImageStatus:
        """An image found in an archive or a layout."""
        diff_ids = found.parsed.rootfs.diff_ids
        await hold.add(*diff_ids)
        pieces = {piece.diff_id: piece for piece in found.pieces}
        sizes = {diff_id: await asyncio.to_thread(_size, source, piece.name) for diff_id, piece in pieces.items()}
        meter = Meter(report, "unpacking", sum(sizes.values()))

        async def one(piece: layout.Piece) -> None:
            async with self._turns.of(piece.diff_id):
                if self._content.has_layer(piece.diff_id):
                    meter.add(sizes[piece.diff_id])
                    return
                async with gate, self._scratch() as scratch:
                    done = await stoppable(
                        lambda stop: self._unpack(
                            source.open(piece.name),
                            scratch,
                            stop,
                            meter.add,
                            diff_id=piece.diff_id,
                            digest=piece.digest,
                        )
                    )
                    await self._place(scratch, done)

        gate = asyncio.Semaphore(_AT_ONCE)
        await together([one(piece) for piece in pieces.values()])
        data = found.manifest or manifest.manifest_for(
            found.configuration, [(diff_id, self._content.layer_record(diff_id).length) for diff_id in diff_ids]
        )
        return await self._commit(hold, data, found.configuration, found.parsed)

    async def _adopt(self, hold: Hold, tar: Path, report: Report) -> ImageStatus:
        """The tar of a whole root filesystem: one layer, and a configuration of ours."""
        async with self._scratch() as scratch:
            meter = Meter(report, "unpacking", tar.stat().st_size)
            done = await stoppable(lambda stop: self._unpack(_whole(tar), scratch, stop, meter.add, whole=True))
            if not done.entries:
                raise Invalid(
                    "the archive is empty",
                    hint="an image is the tar of a root filesystem, or an archive of one",
                    field="source",
                )
            shell = next((name for name in _SHELLS if _has_program(scratch / "root", name)), "")
            await hold.add(done.diff_id)
            async with self._turns.of(done.diff_id):
                if not self._content.has_layer(done.diff_id):
                    await self._place(scratch, done)
        configuration = manifest.configuration_for(done.diff_id, [shell] if shell else [])
        data = manifest.manifest_for(configuration, [(done.diff_id, done.length)])
        return await self._commit(hold, data, configuration, manifest.read_configuration(configuration, 1))

    async def _commit(self, hold: Hold, data: bytes, configuration: bytes, parsed: Configuration) -> ImageStatus:
        """Everything of the image is here: say so."""
        digest = manifest.digest_of(data)
        await hold.add(digest, manifest.digest_of(configuration))
        if self._content.has_image(digest):
            return self._here(digest)
        records = [(diff_id, self._content.layer_record(diff_id)) for diff_id in parsed.rootfs.diff_ids]
        status = ImageStatus(
            digest=digest,
            architecture=parsed.architecture,
            os=parsed.os,
            config=manifest.image_config(parsed),
            layers=[Layer(diff_id=diff_id, size=record.size) for diff_id, record in records],
            size=len(data) + len(configuration) + sum(record.size for record in dict(records).values()),
        )

        def write() -> None:
            self._content.write_blob(status.digest, data)
            self._content.write_blob(manifest.digest_of(configuration), configuration)
            self._content.write_image(status)

        await stoppable(lambda _stop: write())
        return self._here(digest)

    def _here(self, digest: str) -> ImageStatus:
        self._holds.brought(digest)
        return self._content.image(digest)

    # Work in threads

    def _unpack(
        self,
        section: Section,
        scratch: Path,
        stop: threading.Event,
        progress: Callable[[int], None],
        *,
        diff_id: str = "",
        digest: str = "",
        whole: bool = False,
    ) -> Unpacked:
        root, trash = scratch / "root", scratch / "trash"
        root.mkdir(0o755)
        trash.mkdir()
        with section as file:
            intake = Intake(file, hashed=bool(digest), progress=progress)
            done = unpack(
                Tape(decompress(intake, self._bounds)), root, trash, bounds=self._bounds, whole=whole, stop=stop
            )
        if digest and intake.digest() != digest:
            raise Corrupt(f"the layer {digest} is not what its digest names", hint="the image is damaged or lies")
        if diff_id and done.diff_id != diff_id:
            raise Corrupt(f"a layer unpacks to {done.diff_id}, not to {diff_id}", hint="the image is damaged or lies")
        return done

    async def _place(self, scratch: Path, done: Unpacked) -> None:
        record = LayerRecord(size=done.size, length=done.length)
        await stoppable(lambda _stop: self._content.commit_layer(done.diff_id, scratch / "root", record))

    def _decompress(self, source: Path, target: Path, progress: Callable[[int], None], stop: threading.Event) -> None:
        with _whole(source) as file, target.open("wb") as out:
            for piece in decompress(Intake(file, hashed=False, progress=progress), self._bounds):
                out.write(piece)
                room = os.fstatvfs(out.fileno())
                if room.f_bavail * room.f_frsize < self._bounds.reserve:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if stop.is_set():
                    raise Cancelled

    def _collect(self, images: set[str], held: set[str]) -> int:
        content = self._content
        freed = sum(
            content.remove_image(digest) for digest in (content.image_digests() | content.derived_names()) - images
        )
        needed = self._needed() | held
        freed += sum(content.remove_layer(diff_id) for diff_id in content.layer_names() - needed)
        return freed + sum(content.remove_blob(digest) for digest in content.blob_names() - needed)

    def _needed(self) -> set[str]:
        """Every digest that an image here stands on."""
        needed: set[str] = set()
        for digest in self._content.image_digests():
            needed |= {digest, *(layer.diff_id for layer in self._content.image(digest).layers)}
            found = manifest.read_manifest(self._content.blob(digest).read_bytes(), "manifest")
            if not isinstance(found, Index):
                needed.add(found.config.digest)
        return needed

    def _forget(self, digests: set[str]) -> None:
        """What a failed attempt brought and nobody else needs."""
        unneeded = digests - self._needed()
        for diff_id in unneeded & self._content.layer_names():
            self._content.remove_layer(diff_id)
        for digest in unneeded & self._content.blob_names():
            self._content.remove_blob(digest)

    # Around every attempt

    @contextlib.asynccontextmanager
    async def _bringing(self) -> AsyncGenerator[Hold, None]:
        """A hold for one attempt. When it fails for good, what it brought goes; when the network or a person cut it short, what
        came stays for the next."""
        hold = self._holds.begin()
        try:
            yield hold
        except (Unavailable, asyncio.CancelledError):
            self._holds.end(hold)
            raise
        except OSError as error:
            await asyncio.shield(self._undo(hold))
            raise _explained(error, self._content.path) from error
        except BaseException:
            await asyncio.shield(self._undo(hold))
            raise
        finally:
            self._holds.end(hold)

    async def _undo(self, hold: Hold) -> None:
        self._holds.end(hold)
        async with self._holds.settled:
            await asyncio.to_thread(self._forget, hold.digests - self._holds.held())

    @contextlib.asynccontextmanager
    async def _scratch(self) -> AsyncGenerator[Path, None]:
        path = self._content.scratch_path()
        try:
            await stoppable(lambda _stop: path.mkdir(0o700))
            yield path
        finally:
            await stoppable(lambda _stop: remove(path))


def _explained(error: OSError, path: Path) -> LamellaError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"no room under {path}", hint="free some space, or collect images that nobody uses")
    return Unavailable(f"the image library cannot go on: {error}", hint=f"look at {path} and the disk below it")


def _whole(path: Path) -> Section:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return Section(descriptor, 0, os.fstat(descriptor).st_size)


def _size(source: Source, name: str) -> int:
    section = source.open(name)
    with section:
        return section.size


def _look(path: Path) -> tuple[int, Compression]:
    """Size in bytes and compression of the file *path*."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no {path} on this host", hint="name a file or directory of the host") from None
    except (OSError, ValueError) as error:
        raise Invalid(
            f"{path} cannot be read: {error}", hint="name a file or directory of the host", field="source"
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Invalid(f"{path} is not a file", hint="name a file or directory of the host", field="source")
        return status.st_size, sniff(os.pread(descriptor, 16, 0))
    finally:
        os.close(descriptor)


def _archive(path: Path, named: str) -> TarFile:
    try:
        return TarFile(path)
    except Corrupt as error:
        raise Corrupt(f"{named} is not a whole tar archive: {error.message}", hint=error.hint) from error


def _has_program(root: Path, name: str) -> bool:
    return any(os.path.lexists(root / folder / name) for folder in ("bin", "usr/bin"))
