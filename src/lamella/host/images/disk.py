"""The image library on this host's disk: every verb from beginning to end.

Layers are brought into ``scratch``, checked, and renamed into place; the record of an image is written last. So an image that
is listed is whole, and whatever is interrupted leaves only what :meth:`DiskLibrary.open` or :meth:`DiskLibrary.collect` clears.
"""

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

from lamella.host.compute.driver import Rootfs, StoredArtifact
from lamella.host.images import bootable, bootable_root, debian, exporting, layout, manifest
from lamella.host.images.archive import Directory, Source
from lamella.host.images.collection import collect, forget
from lamella.host.images.content import Content, LayerRecord, remove
from lamella.host.images.exporting import Exporter
from lamella.host.images.formats.recognise import Form
from lamella.host.images.holds import Hold, Holds, Turns
from lamella.host.images.layers import decompress_section, unpack_layer
from lamella.host.images.library import Credentials, Progress, Report
from lamella.host.images.look import archive, has_program, look, size_of, whole
from lamella.host.images.machine import machine_configuration, machine_manifest
from lamella.host.images.machines import Machines, form_of
from lamella.host.images.manifest import Configuration, Descriptor, Manifest, Named
from lamella.host.images.meter import Meter
from lamella.host.images.reference import Reference, parse_reference
from lamella.host.images.registry import Registry
from lamella.host.images.tape import Bounds, Compression
from lamella.host.images.thread import stoppable, together
from lamella.host.images.unpack import Unpacked
from lamella.model.errors import Corrupt, Invalid, LamellaError, NoRoom, NotFound, Unavailable
from lamella.model.image import Appliance, Artifact, ArtifactKind, ImageStatus, Layer

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
        self._machines = Machines(self._content, self._turns, self._bounds, mark)
        self._exporter = Exporter(self._content, self._bounds, mark)

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
            module = manifest.module_layer(found)
            if module is not None:
                named = await self._fetch_module(hold, registry, module, report)
                return await self._commit(
                    hold, data, configuration, manifest.module_configuration(configuration, named)
                )
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

    async def import_file(self, path: str, report: Report, *, initrd: str = "") -> ImageStatus:
        """As :meth:`ImageLibrary.import_file`; what it is, is told by its content.

        :raise NotFound: when nothing is there.
        :raise Invalid: when it is not an image, holds several, or has an *initrd* and is no kernel.
        :raise Unsupported: when the image is not for this host, or of a kind that is not taken.
        :raise Corrupt: when it lies or is damaged, or names files beyond its own.
        """
        report(Progress(step="looking"))
        source = Path(path)
        async with self._bringing() as hold, self._scratch() as scratch:
            if await asyncio.to_thread(source.is_dir):
                return await self._take_directory(hold, source, report)
            size, compression = await asyncio.to_thread(look, source)
            if compression is not Compression.NONE:
                meter, plain = Meter(report, "decompressing", size), scratch / "plain"
                compressed = whole(source)
                await stoppable(lambda stop: decompress_section(compressed, plain, self._bounds, meter.add, stop))
                source = plain
            form = await asyncio.to_thread(form_of, source, path)
            if form is not Form.ARCHIVE or initrd:
                artifacts, appliance = await self._machines.take(hold, form, source, path, initrd, scratch, report)
                return await self._commit_machine(hold, artifacts, appliance)
            opened = await asyncio.to_thread(archive, source, path)
            found = await asyncio.to_thread(layout.find, opened)
            if found is not None:
                return await self._take(hold, opened, found, report)
            return await self._adopt(hold, source, report)

    async def export(self, digest: str, format: str) -> AsyncIterator[bytes]:
        """As :meth:`ImageLibrary.export`: a disk as one file that stands alone, qcow2 not compressed, VMDK optimised for streams.

        :raise NotFound: when the image is not here.
        :raise Invalid: when it has nothing of the kind, or *format* is not known.
        """
        status = self._content.image(digest)
        artifact = exporting.choose(status, format)
        hold = self._holds.begin()
        try:
            await hold.add(digest, artifact.digest)
            async with self._scratch() as scratch, aclosing(self._exporter.stream(artifact, format, scratch)) as pieces:
                async for piece in pieces:
                    yield piece
        except OSError as error:
            raise _explained(error, self._content.path) from error
        finally:
            self._holds.end(hold)

    async def build(self, name: str, report: Report, *, packages: list[str], disk: bool = False) -> ImageStatus:
        """As :meth:`ImageLibrary.build`.

        :raise Invalid: when *name* or a package cannot be built.
        :raise Unsupported: when mmdebstrap is not installed, or with *disk* what makes a disk start.
        :raise Unavailable: when the mirror cannot be reached.
        """
        wanted = debian.release(name)
        debian.check_packages(packages)
        if disk:
            await asyncio.to_thread(bootable.check_tools, bootable.architecture())
        async with self._bringing() as hold, self._scratch() as scratch:
            target = scratch / "root.tar"
            hooks: list[str] = []
            if disk:
                packages = [*packages, *bootable_root.packages(bootable.architecture())]
                hooks = await asyncio.to_thread(bootable_root.prepare, scratch)
            await debian.bootstrap(
                wanted, packages, target, scratch, lambda step: report(Progress(step=step, unit="")), self._mark, hooks
            )
            if not disk:
                return await self._adopt(hold, target, report)
            configuration, layers = await self._adopt_layer(hold, target, report)
            made = await self._bootable(hold, layers[0][0], scratch, wanted.epoch, report)
            base = manifest.read_configuration(configuration, len(layers))
            return await self._commit_machine(hold, [made], None, base=base, layers=layers)

    async def _bootable(self, hold: Hold, diff_id: str, scratch: Path, epoch: int, report: Report) -> Named:
        """The root *diff_id* on a disk that starts, stored."""
        report(Progress(step="making a bootable disk", unit=""))
        await bootable.make_disk(
            self._content.layer(diff_id),
            scratch / "disk.raw",
            scratch,
            identity=diff_id,
            architecture=bootable.architecture(),
            epoch=epoch,
            mark=self._mark,
        )
        return await self._store_disk(hold, scratch / "disk.raw", report)

    async def rootfs(self, digest: str) -> Rootfs:
        status = self._content.image(digest)
        self._holds.known({digest})
        layers = [self._content.layer(layer.diff_id) for layer in reversed(status.layers)]
        artifacts = [
            StoredArtifact(kind=one.kind, digest=one.digest, path=self._content.artifact(one.digest), size=one.size)
            for one in status.artifacts
        ]
        return Rootfs(digest=digest, layers=layers, config=status.config, artifacts=artifacts, os=status.os)

    async def inventory(self) -> set[str]:
        return await asyncio.to_thread(self._content.image_digests)

    async def collect(self, keep: set[str]) -> int:
        """As :meth:`ImageLibrary.collect`. An image that came within the grace time stays, unless *keep* has named it before."""
        self._holds.known(keep)
        async with self._holds.settled:
            held = self._holds.held()
            return await stoppable(lambda _stop: collect(self._content, keep | self._holds.fresh() | held, held))

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
                        lambda stop: unpack_layer(
                            whole(blob), scratch, self._bounds, stop, unpacking.add, diff_id=diff_id
                        )
                    )
                    await self._place(scratch, done)
                blob.unlink(missing_ok=True)

    async def _fetch_module(self, hold: Hold, registry: Registry, module: Descriptor, report: Report) -> Named:
        async with self._turns.of(f"blob {module.digest}"):
            if self._content.has_artifact(module.digest):
                size = self._content.artifact(module.digest).stat().st_size
                return Named(kind=ArtifactKind.MODULE, digest=module.digest, size=size)
            arriving = self._content.partial(module.digest)
            await registry.download(module, arriving, Meter(report, "fetching", module.size).add)
            return await self._machines.adopt_module(hold, arriving, module.digest)

    async def _take_directory(self, hold: Hold, path: Path, report: Report) -> ImageStatus:
        directory = await asyncio.to_thread(Directory, path)
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

    async def _take(self, hold: Hold, source: Source, found: layout.Found, report: Report) -> ImageStatus:
        """An image found in an archive or a layout."""
        if found.module is not None:
            await hold.add(found.module.digest)
            async with self._scratch() as scratch:
                section = await asyncio.to_thread(source.open, found.module_name)
                await self._machines.take_module(hold, section, found.module.digest, scratch, report)
            return await self._commit(hold, found.manifest, found.configuration, found.parsed)
        diff_ids = found.parsed.rootfs.diff_ids
        await hold.add(*diff_ids)
        pieces = {piece.diff_id: piece for piece in found.pieces}
        sizes = {diff_id: await asyncio.to_thread(size_of, source, piece.name) for diff_id, piece in pieces.items()}
        meter = Meter(report, "unpacking", sum(sizes.values()))

        async def one(piece: layout.Piece) -> None:
            async with self._turns.of(piece.diff_id):
                if self._content.has_layer(piece.diff_id):
                    meter.add(sizes[piece.diff_id])
                    return
                async with gate, self._scratch() as scratch:
                    done = await stoppable(
                        lambda stop: unpack_layer(
                            source.open(piece.name),
                            scratch,
                            self._bounds,
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
        configuration, layers = await self._adopt_layer(hold, tar, report)
        data = manifest.manifest_for(configuration, layers)
        return await self._commit(hold, data, configuration, manifest.read_configuration(configuration, 1))

    async def _adopt_layer(self, hold: Hold, tar: Path, report: Report) -> tuple[bytes, list[tuple[str, int]]]:
        """The tar of a whole root filesystem becomes a layer: its configuration, and its diff_id with the tar's size."""
        async with self._scratch() as scratch:
            meter = Meter(report, "unpacking", tar.stat().st_size)
            done = await stoppable(
                lambda stop: unpack_layer(whole(tar), scratch, self._bounds, stop, meter.add, entire=True)
            )
            if not done.entries:
                raise Invalid(
                    "the archive is empty",
                    hint="an image is the tar of a root filesystem, or an archive of one",
                    field="source",
                )
            shell = next((name for name in _SHELLS if has_program(scratch / "root", name)), "")
            await hold.add(done.diff_id)
            async with self._turns.of(done.diff_id):
                if not self._content.has_layer(done.diff_id):
                    await self._place(scratch, done)
        return manifest.configuration_for(done.diff_id, [shell] if shell else []), [(done.diff_id, done.length)]

    async def _commit_mixed(
        self, hold: Hold, tar: Path, artifacts: list[Named], appliance: Appliance | None, report: Report
    ) -> ImageStatus:
        """One image of a root filesystem, given as its tar, and of *artifacts* that are stored already."""
        configuration, layers = await self._adopt_layer(hold, tar, report)
        base = manifest.read_configuration(configuration, len(layers))
        return await self._commit_machine(hold, artifacts, appliance, base=base, layers=layers)

    async def _commit_machine(
        self,
        hold: Hold,
        artifacts: list[Named],
        appliance: Appliance | None,
        *,
        base: Configuration | None = None,
        layers: list[tuple[str, int]] | None = None,
    ) -> ImageStatus:
        """An image of stored *artifacts*, in the order in which a machine has them, over *layers* with the configuration *base*."""
        configuration = machine_configuration(artifacts, base=base, appliance=appliance)
        data = machine_manifest(configuration, layers or [], artifacts)
        parsed = manifest.read(configuration, Configuration, "image's configuration")
        return await self._commit(hold, data, configuration, parsed)

    async def _store_disk(self, hold: Hold, file: Path, report: Report) -> Named:
        """The raw disk *file*, in scratch and written by nobody any more, becomes an artifact; *file* is gone then."""
        return await self._machines.store_disk(hold, file, report)

    async def _commit(self, hold: Hold, data: bytes, configuration: bytes, parsed: Configuration) -> ImageStatus:
        """Everything of the image is here: say so."""
        digest = manifest.digest_of(data)
        await hold.add(digest, manifest.digest_of(configuration))
        if self._content.has_image(digest):
            return self._here(digest)
        records = [(diff_id, self._content.layer_record(diff_id)) for diff_id in parsed.rootfs.diff_ids]
        artifacts = [
            Artifact(kind=one.kind, digest=one.digest, size=one.size, stored=self._content.artifact_stored(one.digest))
            for one in parsed.artifacts
        ]
        status = ImageStatus(
            digest=digest,
            architecture=parsed.architecture,
            os=parsed.os,
            config=manifest.image_config(parsed),
            layers=[Layer(diff_id=diff_id, size=record.size) for diff_id, record in records],
            artifacts=artifacts,
            appliance=parsed.appliance,
            size=len(data)
            + len(configuration)
            + sum(record.size for record in dict(records).values())
            + sum({artifact.digest: artifact.stored for artifact in artifacts}.values()),
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

    async def _place(self, scratch: Path, done: Unpacked) -> None:
        record = LayerRecord(size=done.size, length=done.length)
        await stoppable(lambda _stop: self._content.commit_layer(done.diff_id, scratch / "root", record))

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
            await asyncio.to_thread(forget, self._content, hold.digests - self._holds.held())

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
