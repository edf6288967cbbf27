"""Everything that a start or a change of devices needs, made ready on this host: image, volumes, drives."""

import re

from lamella.host.compute.driver import Machine, MountedVolume, Rootfs, StoredArtifact
from lamella.host.images.library import ImageLibrary
from lamella.host.machine import Parts, machine_of
from lamella.host.network.driver import NetworkDriver
from lamella.host.storage.driver import Base, Source, VolumeHandle
from lamella.host.storage.wing import Attachment, Storage
from lamella.model.assignment import Assignment
from lamella.model.image import SCRATCH, ArtifactKind, ImageConfig
from lamella.model.instance import MACHINES
from lamella.model.storage import Volume, VolumeMount


class Assembly:
    """The parts of one instance. Its own volumes are made when they are missing; those with a life of their own are opened for it."""

    def __init__(self, id: str, *, library: ImageLibrary, network: NetworkDriver, storage: Storage) -> None:
        self.id = id
        self._library = library
        self._network = network
        self._storage = storage
        self._rootfs: Rootfs | None = None

    async def image(self, asked: Assignment) -> Rootfs:
        """:raise NotFound: when this host does not have the image."""
        if asked.instance.status.image_digest == SCRATCH:
            return Rootfs(digest=SCRATCH, layers=[], config=ImageConfig())
        if self._rootfs is None:
            self._rootfs = await self._library.rootfs(asked.instance.status.image_digest)
        return self._rootfs

    async def machine(self, asked: Assignment) -> Machine:
        """What a driver is given. When a part cannot be had, the volumes that were opened stay open: :meth:`close` them."""
        rootfs = await self.image(asked)
        base = [Base(path=a.path, size=a.size) for a in rootfs.artifacts if a.kind is ArtifactKind.DISK]
        whole = asked.instance.spec.isolation in MACHINES
        disk = None
        if asked.volume is not None:
            disk = await self._own(asked.volume, base[0] if whole and base else None, source=asked.source)
        disks: dict[str, VolumeHandle] = {}
        for name, volume in asked.disks.items():
            number = int(name.removeprefix("image-")) if re.fullmatch(r"image-\d+", name) else len(base)
            disks[name] = await self._own(volume, base[number] if whole and number < len(base) else None)
        drives: dict[str, StoredArtifact] = {}
        for name, digest in asked.instance.status.cdroms.items():
            held = await self._library.rootfs(digest)
            drives[name] = next(a for a in held.artifacts if a.kind is ArtifactKind.CDROM)
        volumes = [await self._attached(asked, mount) for mount in asked.instance.spec.volumes]
        nameservers = await self._network.nameservers(asked.port.spec.network) if asked.port is not None else []
        parts = Parts(rootfs=rootfs, disk=disk, disks=disks, volumes=volumes, drives=drives, nameservers=nameservers)
        return machine_of(asked, parts)

    async def close(self, asked: Assignment | None = None) -> None:
        """Close the volumes that *asked* does not name any more, or all."""
        keep = {volume.id for volume in asked.volumes.values()} if asked is not None else set[str]()
        open = (await self._storage.attached()).get(self.id, set())
        if open - keep:
            await self._storage.detach(self.id, open - keep)

    async def delete(self, volumes: list[Volume]) -> None:
        """Of *volumes*, those that are the instance's own."""
        for volume in volumes:
            if volume.spec.owner == self.id:
                await self._storage.pool(volume.spec.pool).delete(volume.id, shred=volume.spec.shred)

    async def _own(self, volume: Volume, base: Base | None, *, source: str = "") -> VolumeHandle:
        pool, spec = self._storage.pool(volume.spec.pool), volume.spec
        if spec.source is None:
            return await pool.create(volume.id, spec.form, spec.size, base=base)
        if not source:
            # What it began as is gone: it was made then, or cannot be any more.
            return await pool.handle(volume.id)
        begins = Source(volume=source, snapshot=spec.source)
        return await pool.create(volume.id, spec.form, spec.size, source=begins)

    async def _attached(self, asked: Assignment, mount: VolumeMount) -> MountedVolume:
        return await self._storage.attach(
            Attachment(
                volume=asked.volumes[mount.volume],
                mount=mount,
                user=self.id,
                uid=asked.instance.status.id_base,
                spec=asked.instance.spec,
            )
        )
