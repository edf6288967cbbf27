"""The driver ``zfs``: ``PoolSpec.path`` is a dataset (``tank/lamella``); a volume is a sparse zvol or a dataset of its id below it.

Clones are ZFS's own and need their snapshot. A volume is made as ``half-ID`` and renamed, and renamed to ``gone-…`` before it is removed.
ZFS goes back by throwing away every later snapshot (zfs-rollback(8)); a volume that has some is written over from its snapshot
instead, so that they stay. Sources: zfs-create(8), zfs-snapshot(8), zfs-clone(8), zpool-scrub(8).
"""

import asyncio
import hashlib
import secrets
from pathlib import Path

from lamella.host.linux import binaries
from lamella.host.storage import command, qemu_io
from lamella.host.storage.driver import Base, Extent, Node, Source, VolumeHandle
from lamella.host.storage.zfs import tables
from lamella.host.storage.zfs.tables import Dataset
from lamella.model.errors import Conflict, Invalid, NoRoom, NotFound, Unavailable, Unsupported
from lamella.model.ids import is_id
from lamella.model.resource import Condition
from lamella.model.storage import Feature, PoolStatus, VolumeForm
from lamella.model.storage_requests import StorageFinding

DEFAULT_BLOCK_SIZE = 8 << 30
_SOON = 60.0
_DEVICE = Path("/dev/zfs")
_APPEARS = 10.0
# Small enough for random writes, large enough for compression and raidz; a volume's size is a multiple of it.
_BLOCK = 16 << 10


def missing() -> str:
    """Why this host can have no ZFS, or nothing."""
    if not _DEVICE.exists():
        return f"this kernel has no ZFS: there is no {_DEVICE}"
    try:
        binaries.tool("zfs")
        binaries.tool("zpool")
    except Unavailable:
        return "zfs and zpool are not installed: apt install zfsutils-linux"
    return ""


class ZfsDriver:
    """``features`` gains ``REDUNDANT`` when the opened pool has a mirror, RAID-Z or dRAID."""

    name = "zfs"

    def __init__(self, path: Path, options: dict[str, str] | None = None) -> None:
        self.features = frozenset(
            {
                Feature.BLOCK,
                Feature.FILESYSTEM,
                Feature.THIN,
                Feature.SNAPSHOT,
                Feature.LIVE_SNAPSHOT,
                Feature.CLONE,
                Feature.SHRINK,
                Feature.QUOTA,
                Feature.CHECKSUM,
            }
        )
        self.root = str(path).strip("/")
        self.pool = self.root.partition("/")[0]
        self.options = dict(options or {})
        self._changing = asyncio.Lock()

    async def open(self) -> PoolStatus:
        if self.options:
            raise Invalid(f"a zfs pool has no option {min(self.options)}", field="options")
        if not self.root or self.root.startswith("-") or any(sign in self.root for sign in "@# \t"):
            raise Invalid(f"{self.root!r} is no dataset", hint="write it as tank/lamella", field="path")
        if reason := await asyncio.to_thread(missing):
            raise Unsupported(reason, hint="use another driver on this host")
        await self._do("zfs", "create", "-p", self.root)
        for dataset in await self._children():
            if _id(dataset).startswith(("half-", "gone-")):
                await self._do("zfs", "destroy", "-r", dataset.name)
        await self._collect()
        return await self.status()

    async def close(self) -> None:
        pass

    async def status(self) -> PoolStatus:
        room, told = await asyncio.gather(
            self._do("zfs", "list", "-Hp", "-o", "used,available", self.root), self._do("zpool", "status", self.pool)
        )
        used, _, free = room.strip().partition("\t")
        if tables.redundant(told):
            self.features |= {Feature.REDUNDANT}
        conditions: list[Condition] = []
        health = (await self._do("zpool", "list", "-H", "-o", "health", self.pool)).strip()
        if health != "ONLINE":
            conditions.append(
                Condition(
                    type="Healthy",
                    status=False,
                    reason=health.capitalize() or "Unknown",
                    message=f"ZFS pool {self.pool} is {health}",
                    hint=f"zpool status {self.pool} tells more",
                )
            )
        return PoolStatus(
            capacity=tables.number(used) + tables.number(free),
            free=tables.number(free),
            features=sorted(self.features),
            conditions=conditions,
        )

    async def inventory(self) -> set[str]:
        return {_id(dataset) for dataset in await self._children() if is_id(_id(dataset))}

    async def create(
        self, id: str, form: VolumeForm, size: int, *, base: Base | None = None, source: Source | None = None
    ) -> VolumeHandle:
        _check_id(id)
        if size < 0:
            raise Invalid(f"a volume cannot have {size} bytes", hint="use 0 or more", field="size")
        if base is not None and form is not VolumeForm.BLOCK:
            raise Invalid("a filesystem volume cannot begin as a disk", hint="ask for a block volume", field="form")
        async with self._changing:
            there = {_id(dataset): dataset for dataset in await self._children()}
            if id not in there:
                half = f"half-{id}"
                if half in there:
                    await self._do("zfs", "destroy", "-r", self._name(half))
                await self._make(half, form, size, base, source)
                await self._do("zfs", "rename", self._name(half), self._name(id))
        handle = await self.handle(id)
        if handle.form is not form:
            raise Conflict(f"volume {id} exists and is a {handle.form} volume, not a {form} one", field="form")
        return handle

    async def _make(self, name: str, form: VolumeForm, size: int, base: Base | None, source: Source | None) -> None:
        if base is not None or source is not None:
            origin, least = await self._base(base) if base is not None else await self._origin(source, form)
            if form is VolumeForm.BLOCK and 0 < size < least:
                raise Invalid(
                    f"a volume of {size} bytes cannot hold what it begins as, {least} bytes",
                    hint="ask for more, or for 0 to take its size",
                    field="size",
                )
            await self._do("zfs", "clone", origin, self._name(name))
            if form is VolumeForm.BLOCK and size > least:
                await self._do("zfs", "set", f"volsize={_rounded(size)}", self._name(name))
            elif form is VolumeForm.FILESYSTEM:
                await self._do("zfs", "set", f"refquota={size or 'none'}", self._name(name))
        elif form is VolumeForm.BLOCK:
            wanted = str(_rounded(size or DEFAULT_BLOCK_SIZE))
            options = ("-s", "-b", str(_BLOCK), "-o", "snapdev=visible")
            await self._do("zfs", "create", *options, "-V", wanted, self._name(name))
        else:
            await self._do("zfs", "create", "-o", f"refquota={size or 'none'}", "-o", "acltype=posix", self._name(name))

    async def _origin(self, source: Source | None, form: VolumeForm) -> tuple[str, int]:
        assert source is not None
        dataset = await self._find(source.volume, source.snapshot)
        if _form(dataset) is not form:
            raise Invalid(f"a {form} volume cannot begin as a snapshot of a {_form(dataset)} one", field="form")
        size = await self._do("zfs", "get", "-Hp", "-o", "value", "volsize", f"{dataset.name}@{source.snapshot}")
        return f"{dataset.name}@{source.snapshot}", tables.number(size.strip())

    async def _base(self, base: Base) -> tuple[str, int]:
        """The snapshot that holds an image's disk, written once."""
        try:
            told = await asyncio.to_thread(base.path.stat)
        except OSError as error:
            raise Unavailable(f"the image's disk {base.path} cannot be read: {error.strerror}") from error
        if told.st_size != base.size:
            raise Unavailable(f"the image's disk {base.path} has {told.st_size} bytes, not {base.size}")
        digest = hashlib.sha256(f"{base.path}\0{base.size}\0{told.st_mtime_ns}".encode()).hexdigest()[:32]
        there = {_id(dataset): dataset for dataset in await self._children()}
        name, half = self._name(f"base-{digest}"), self._name(f"half-base-{digest}")
        if f"base-{digest}" not in there:
            if f"half-base-{digest}" in there:
                await self._do("zfs", "destroy", "-r", half)
            await self._do("zfs", "create", "-s", "-b", str(_BLOCK), "-V", str(_rounded(base.size)), half)
            await self._write(str(base.path), "raw", half)
            await self._do("zfs", "snapshot", f"{half}@ready")
            await self._do("zfs", "rename", half, name)
        return f"{name}@ready", _rounded(base.size)

    async def _collect(self) -> None:
        """Remove the disks of images that no volume stands on."""
        datasets = await self._children()
        origins = {dataset.origin for dataset in datasets}
        for dataset in datasets:
            if _id(dataset).startswith("base-") and f"{dataset.name}@ready" not in origins:
                await self._do("zfs", "destroy", "-r", dataset.name)

    async def _write(self, path: str, format: str, target: str) -> None:
        device = await self._appeared(target)
        argv = [str(binaries.tool("qemu-img")), "convert", "-n", "-f", format, "-O", "host_device", path, str(device)]
        said = await command.run(argv, timeout=qemu_io.LONG)
        if said.code:
            raise Unavailable(f"qemu-img did not write {target}: {said.error[-300:]}")

    async def _appeared(self, name: str) -> Path:
        """udev makes a zvol's link some moments after the zvol.

        :raise Unavailable: when it does not.
        """
        device = Path("/dev/zvol") / name
        deadline = asyncio.get_running_loop().time() + _APPEARS
        while not await asyncio.to_thread(device.exists):
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"{device} did not appear", hint="is udev running, with zvol's rules?")
            await asyncio.sleep(0.02)
        return device

    async def handle(self, id: str) -> VolumeHandle:
        dataset = await self._find(id)
        form = _form(dataset)
        path = Path("/dev/zvol") / dataset.name if form is VolumeForm.BLOCK else Path(dataset.mountpoint)
        return VolumeHandle(id=id, form=form, path=path, size=dataset.size)

    async def node(self, id: str, snapshot: str | None = None) -> Node:
        dataset = await self._find(id, snapshot)
        if _form(dataset) is not VolumeForm.BLOCK:
            raise Invalid(f"volume {id} is a directory, not a disk", hint="mount it", field="form")
        if snapshot is None:
            return {"driver": "host_device", "filename": str(await self._appeared(dataset.name))}
        device = await self._appeared(f"{dataset.name}@{snapshot}")
        return {"driver": "host_device", "filename": str(device), "read-only": True}

    async def used(self, id: str) -> int:
        return (await self._find(id)).used

    async def resize(self, id: str, size: int) -> VolumeHandle:
        dataset = await self._find(id)
        block = _form(dataset) is VolumeForm.BLOCK
        setting = f"volsize={_rounded(size)}" if block else f"refquota={size or 'none'}"
        await self._do("zfs", "set", setting, dataset.name)
        return await self.handle(id)

    async def resized(self, id: str, size: int) -> None:
        """:raise Unsupported: when the zvol is smaller: a device cannot be resized by who has it open."""
        if (await self._find(id)).size < size:
            raise Unsupported("a zvol is resized by zfs alone", hint="resize it while nobody has it open")

    async def snapshot(self, id: str, snapshot: str) -> None:
        _check_id(snapshot)
        dataset = await self._find(id)
        if snapshot not in await self.snapshots(id):
            await self._do("zfs", "snapshot", f"{dataset.name}@{snapshot}")

    async def snapshots(self, id: str) -> list[str]:
        dataset = await self._find(id)
        out = await self._do(
            "zfs", "list", "-Hp", "-t", "snapshot", "-d", "1", "-s", "createtxg", "-o", "name", dataset.name
        )
        return [line.partition("@")[2] for line in out.splitlines()]

    async def drop(self, id: str, snapshot: str) -> None:
        if id in await self.inventory() and snapshot in await self.snapshots(id):
            await self._nothing_stands_on(id, [snapshot])
            await self._do("zfs", "destroy", f"{self._name(id)}@{snapshot}")

    async def restore(self, id: str, snapshot: str) -> None:
        """:raise Unsupported: of a filesystem volume that has later snapshots, which ZFS would throw away."""
        dataset = await self._find(id, snapshot)
        name = f"{dataset.name}@{snapshot}"
        if (await self.snapshots(id))[-1] == snapshot:
            await self._do("zfs", "rollback", name)
            return
        if _form(dataset) is not VolumeForm.BLOCK:
            raise Unsupported(
                f"ZFS goes back to {snapshot} of {id} only by throwing away later snapshots",
                hint="drop those, or make a new volume from the snapshot",
            )
        size = (await self._do("zfs", "get", "-Hp", "-o", "value", "volsize", name)).strip()
        await self._do("zfs", "set", f"volsize={size}", dataset.name)
        await self._write(str(await self._appeared(name)), "host_device", dataset.name)

    async def delete(self, id: str, *, shred: bool = False) -> None:
        _check_id(id)
        if id not in await self.inventory():
            return
        await self._nothing_stands_on(id, await self.snapshots(id))
        if shred and _form(await self._find(id)) is VolumeForm.BLOCK:
            # What was written is somewhere else on the disks than what is written over it: this is for a pool below which is an SSD's
            # or a SAN's own erasure, no more. docs/storage/zfs-lvm-nfs.md says so.
            extents = [Extent(offset=0, length=(await self._find(id)).size)]
            await qemu_io.overwrite(await self.node(id), extents, 0)
        gone = f"gone-{secrets.token_hex(4)}-{id}"
        await self._do("zfs", "rename", self._name(id), self._name(gone))
        await self._do("zfs", "destroy", "-r", self._name(gone))

    async def _nothing_stands_on(self, id: str, snapshots: list[str]) -> None:
        names = {f"{self._name(id)}@{snapshot}" for snapshot in snapshots}
        standing = sorted(_id(dataset) for dataset in await self._children() if dataset.origin in names)
        if standing:
            raise Conflict(f"volumes stand on snapshots of {id}: {', '.join(standing)}", hint="delete those first")

    async def delta(self, id: str, since: str, until: str | None = None) -> list[Extent] | None:
        return None

    async def check(self, *, repair: bool) -> list[StorageFinding]:
        findings: list[StorageFinding] = []
        for dataset in await self._children():
            if _id(dataset).startswith(("half-", "gone-")):
                if repair:
                    await self._do("zfs", "destroy", "-r", dataset.name)
                findings.append(StorageFinding(subject=dataset.name, problem="work on it was cut short", mended=repair))
        return findings

    async def scrub(self, *, repair: bool) -> tuple[int, list[StorageFinding]]:
        """ZFS mends what it finds wherever it has another copy, asked or not."""
        await self._do("zpool", "scrub", "-w", self.pool, timeout=7 * 24 * 3600.0)
        told = await self._do("zpool", "status", "-v", self.pool)
        allocated = await self._do("zpool", "list", "-Hp", "-o", "allocated", self.pool)
        findings = [
            StorageFinding(subject=name, problem="its checksum is wrong in every copy", hint="restore it from a backup")
            for name in tables.permanent_errors(told)
        ]
        if (mended := tables.repaired(told)) not in ("", "0", "0B"):
            findings.append(StorageFinding(subject=self.pool, problem=f"{mended} were wrong in one copy", mended=True))
        return tables.number(allocated.strip()), findings

    async def _children(self) -> list[Dataset]:
        out = await self._do(
            *("zfs", "list", "-Hp", "-t", "filesystem,volume", "-d", "1", "-s", "createtxg"),
            *("-o", tables.COLUMNS, self.root),
        )
        return [dataset for dataset in tables.datasets(out) if dataset.name != self.root]

    async def _find(self, id: str, snapshot: str | None = None) -> Dataset:
        _check_id(id)
        for dataset in await self._children():
            if _id(dataset) == id:
                if snapshot is None or snapshot in await self.snapshots(id):
                    return dataset
                raise NotFound(f"volume {id} has no snapshot {snapshot}")
        raise NotFound(f"{self.root} has no volume {id}", hint="ask the pool's inventory for what there is")

    def _name(self, id: str) -> str:
        return f"{self.root}/{id}"

    async def _do(self, *argv: str, timeout: float = _SOON) -> str:
        """:raise NoRoom: when the pool or a quota is full. :raise Unavailable: when the tool refuses."""
        said = await command.run([str(binaries.tool(argv[0])), *argv[1:]], timeout=timeout)
        if said.code == 0:
            return said.out.decode(errors="replace")
        if any(mark in said.error for mark in ("out of space", "No space left", "quota exceeded")):
            raise NoRoom(f"cannot {argv[1]}: {self.root} is full", hint="delete volumes, or add disks to the pool")
        raise Unavailable(f"{argv[0]} {argv[1]} refused: {said.error[-300:] or said.code}", hint="see zpool status")


def _id(dataset: Dataset) -> str:
    return dataset.name.rpartition("/")[2]


def _form(dataset: Dataset) -> VolumeForm:
    return VolumeForm.BLOCK if dataset.kind == "volume" else VolumeForm.FILESYSTEM


def _rounded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _check_id(id: str) -> None:
    if not is_id(id):
        raise Invalid(f"{id!r} is not an id", hint="ids look like vol_ and 26 characters", field="id")
