"""The driver ``lvm``: ``PoolSpec.path`` is ``group/thinpool``; a volume is a thin logical volume of its id.

A snapshot is one more thin volume, ``VOLUME.SNAPSHOT``, read-only; it does not need its origin, nor a clone its snapshot, so nothing here
stands on anything. Beside them are ``half.VOLUME`` (being made), ``new.VOLUME`` (what a restore is about to put in its place),
``gone.…`` (being removed) and ``base.DIGEST`` (an image's disk, written once and cloned). Sources: lvmthin(7), lvcreate(8).
"""

import asyncio
import hashlib
import os
import secrets
from pathlib import Path

from lamella.host.linux import binaries
from lamella.host.storage import command, qemu_io
from lamella.host.storage.driver import Base, Extent, Node, Source, VolumeHandle
from lamella.host.storage.lvm import thin
from lamella.host.storage.lvm.thin import LogicalVolume
from lamella.model.errors import Invalid, NoRoom, NotFound, Unavailable, Unsupported
from lamella.model.ids import is_id
from lamella.model.resource import Condition
from lamella.model.storage import Feature, PoolStatus, VolumeForm
from lamella.model.storage_requests import StorageFinding

DEFAULT_BLOCK_SIZE = 8 << 30
_SOON = 60.0
_DEVICES = Path("/proc/misc")
# Of a thin pool, in percent: above it a snapshot or a new volume is refused, for a full pool stops every writer at once.
_METADATA_FULL = 95.0


def missing() -> str:
    """Why this host can have no thin pool, or nothing."""
    # The node under /dev/mapper may be there without a driver behind it.
    if "device-mapper" not in _DEVICES.read_text():
        return f"this kernel has no device mapper: {_DEVICES} does not name it"
    for tool in ("lvs", "lvcreate", "thin_delta"):
        try:
            binaries.tool(tool)
        except Unavailable:
            return f"{tool} is not installed: apt install lvm2 thin-provisioning-tools"
    return ""


class LvmDriver:
    name = "lvm"
    features = frozenset(
        {
            Feature.BLOCK,
            Feature.THIN,
            Feature.SNAPSHOT,
            Feature.LIVE_SNAPSHOT,
            Feature.CLONE,
            Feature.SHRINK,
            Feature.DELTA,
        }
    )

    def __init__(self, path: Path, options: dict[str, str] | None = None) -> None:
        self.path = str(path).removeprefix("/dev/")
        self.options = dict(options or {})
        self.group, _, self.pool = self.path.partition("/")
        self._changing = asyncio.Lock()
        self._reading = asyncio.Lock()

    async def open(self) -> PoolStatus:
        if self.options:
            raise Invalid(f"an lvm pool has no option {min(self.options)}", field="options")
        for name in (self.group, self.pool):
            if not name or name.startswith("-") or "/" in name:
                raise Invalid(f"{self.path!r} is no thin pool", hint="write it as group/thinpool", field="path")
        if reason := await asyncio.to_thread(missing):
            raise Unsupported(reason, hint="use another driver on this host")
        pool = await self._thin_pool()
        if not pool.zeroes:
            raise Unavailable(
                f"thin pool {self.path} does not zero new blocks: a volume could read what another one wrote",
                hint=f"lvchange -Z y {self.path}",
            )
        await self._sweep()
        return await self.status()

    async def _sweep(self) -> None:
        """Finish or undo what a crash left half done."""
        there = {volume.name: volume for volume in await self._all()}
        for name, volume in there.items():
            kind, _, id = name.partition(".")
            if kind == "new" and id not in there:
                await self._rename(name, id)
            elif kind in ("half", "new", "gone"):
                await self._remove(name)
            elif kind == "base" and not any(other.origin == name for other in there.values()):
                await self._remove(volume.name)
            elif is_id(kind) and id and kind not in there and f"new.{kind}" not in there:
                await self._remove(name)

    async def close(self) -> None:
        pass

    async def status(self) -> PoolStatus:
        pool = await self._thin_pool()
        conditions: list[Condition] = []
        if pool.health:
            conditions.append(
                Condition(
                    type="Healthy",
                    status=False,
                    reason="ThinPool",
                    message=f"LVM says of thin pool {self.path}: {pool.health}",
                    hint="see lvs -a -o +lv_health_status and lvmthin(7)",
                )
            )
        return PoolStatus(
            capacity=pool.bytes, free=pool.bytes - pool.taken, features=sorted(self.features), conditions=conditions
        )

    async def inventory(self) -> set[str]:
        return {volume.name for volume in await self._all() if is_id(volume.name)}

    async def create(
        self, id: str, form: VolumeForm, size: int, *, base: Base | None = None, source: Source | None = None
    ) -> VolumeHandle:
        """Sizes grow to a multiple of the group's extents (4 MiB unless it was made otherwise)."""
        _check_id(id)
        if form is not VolumeForm.BLOCK:
            raise Unsupported("an lvm pool holds block volumes only", hint="format one: filesystem ext4", field="form")
        if size < 0:
            raise Invalid(f"a volume cannot have {size} bytes", hint="use 0 or more", field="size")
        async with self._changing:
            there = {volume.name: volume for volume in await self._all()}
            if id in there:
                return self._located(there[id])
            await self._room()
            origin, least = "", 0
            if base is not None:
                origin, least = await self._base(base, there), base.size
            elif source is not None:
                origin = f"{source.volume}.{source.snapshot}"
                if origin not in there:
                    raise NotFound(f"thin pool {self.path} has no snapshot {source.snapshot} of {source.volume}")
                least = there[origin].bytes
            if size and size < least:
                raise Invalid(
                    f"a volume of {size} bytes cannot hold what it begins as, {least} bytes",
                    hint="ask for more, or for 0 to take its size",
                    field="size",
                )
            half = f"half.{id}"
            if half in there:
                await self._remove(half)
            if origin:
                await self._do("lvcreate", "-y", "-s", "-kn", "-prw", "-n", half, f"{self.group}/{origin}")
                if size > least:
                    await self._do("lvextend", "-y", "-L", f"{size}b", f"{self.group}/{half}")
            else:
                wanted = size or DEFAULT_BLOCK_SIZE
                await self._do("lvcreate", "-y", "-Wn", "-V", f"{wanted}b", "-T", self.path, "-n", half)
            await self._rename(half, id)
        return await self.handle(id)

    async def _base(self, base: Base, there: dict[str, LogicalVolume]) -> str:
        try:
            told = await asyncio.to_thread(base.path.stat)
        except OSError as error:
            raise Unavailable(f"the image's disk {base.path} cannot be read: {error.strerror}") from error
        if told.st_size != base.size:
            raise Unavailable(f"the image's disk {base.path} has {told.st_size} bytes, not {base.size}")
        digest = hashlib.sha256(f"{base.path}\0{base.size}\0{told.st_mtime_ns}".encode()).hexdigest()[:32]
        name, half = f"base.{digest}", f"half.base.{digest}"
        if name not in there:
            if half in there:
                await self._remove(half)
            await self._do("lvcreate", "-y", "-Wn", "-V", f"{base.size}b", "-T", self.path, "-n", half)
            argv = [
                str(binaries.tool("qemu-img")),
                "convert",
                "-n",
                "--target-is-zero",
                "-f",
                "raw",
                "-O",
                "host_device",
            ]
            said = await command.run([*argv, str(base.path), str(self._device(half))], timeout=qemu_io.LONG)
            if said.code:
                raise Unavailable(f"qemu-img did not copy {base.path}: {said.error[-300:]}")
            await self._rename(half, name)
        return name

    async def _room(self) -> None:
        pool = await self._thin_pool()
        if float(pool.data_percent or 0) >= 100 or float(pool.metadata_percent or 0) > _METADATA_FULL:
            raise NoRoom(
                f"thin pool {self.path} is full", hint=f"lvextend it (and its metadata: --poolmetadatasize {self.path})"
            )

    async def handle(self, id: str) -> VolumeHandle:
        return self._located(await self._find(id))

    async def node(self, id: str, snapshot: str | None = None) -> Node:
        """Its device, activated; snapshots are not by themselves (lvcreate(8), ``--setactivationskip``)."""
        name = (await self._find(id, snapshot)).name
        await self._do("lvchange", "-y", "-ay", "-K", f"{self.group}/{name}")
        node: Node = {"driver": "host_device", "filename": str(self._device(name))}
        return node | {"read-only": True} if snapshot is not None else node

    async def used(self, id: str) -> int:
        """What it and its snapshots have in the pool; blocks that they share count for each."""
        await self._find(id)
        return sum(volume.taken for volume in await self._all() if volume.name.partition(".")[0] == id)

    async def resize(self, id: str, size: int) -> VolumeHandle:
        volume = await self._find(id)
        where = f"{self.group}/{volume.name}"
        if size > volume.bytes:
            await self._room()
            await self._do("lvextend", "-y", "-L", f"{size}b", where)
        elif size < volume.bytes:
            # Blocks beyond the end would be there again when it grows.
            rest = ["-f", "-o", str(-(-size // 512) * 512), str(self._device(volume.name))]
            await self._do("lvchange", "-y", "-ay", "-K", where)
            await self._do("blkdiscard", *rest)
            await self._do("lvreduce", "-y", "-f", "-L", f"{size}b", where)
        return await self.handle(id)

    async def resized(self, id: str, size: int) -> None:
        """:raise Unsupported: when the device is smaller: a device cannot be resized by who has it open."""
        if (await self._find(id)).bytes < size:
            raise Unsupported(
                "a logical volume is resized by lvextend alone", hint="resize it while nobody has it open"
            )

    async def snapshot(self, id: str, snapshot: str) -> None:
        _check_id(snapshot)
        async with self._changing:
            there = {volume.name for volume in await self._all()}
            if id not in there:
                raise self._missing(id)
            if f"{id}.{snapshot}" not in there:
                await self._room()
                await self._do("lvcreate", "-y", "-s", "-pr", "-n", f"{id}.{snapshot}", f"{self.group}/{id}")

    async def snapshots(self, id: str) -> list[str]:
        """By thin id, which the pool gives in order."""
        await self._find(id)
        found = [volume for volume in await self._all() if volume.name.startswith(f"{id}.")]
        return [volume.name.partition(".")[2] for volume in sorted(found, key=lambda volume: int(volume.thin_id or 0))]

    async def drop(self, id: str, snapshot: str) -> None:
        _check_id(snapshot)
        name = f"{id}.{snapshot}"
        if any(volume.name == name for volume in await self._all()):
            await self._remove(name)

    async def restore(self, id: str, snapshot: str) -> None:
        """A writable snapshot of the snapshot takes the volume's name; a crash between the two renames is finished by ``open``."""
        kept = await self._find(id, snapshot)
        half, new, gone = f"half.{id}", f"new.{id}", f"gone.{secrets.token_hex(4)}.{id}"
        async with self._changing:
            there = {volume.name for volume in await self._all()}
            for name in {half, new} & there:
                await self._remove(name)
            await self._do("lvcreate", "-y", "-s", "-kn", "-prw", "-n", half, f"{self.group}/{kept.name}")
            await self._rename(half, new)
            await self._rename(id, gone)
            await self._rename(new, id)
            await self._remove(gone)

    async def delete(self, id: str, *, shred: bool = False) -> None:
        _check_id(id)
        async with self._changing:
            mine = [volume for volume in await self._all() if volume.name.partition(".")[0] == id]
            if shred and any(volume.name == id for volume in mine):
                await self._shred(next(volume for volume in mine if volume.name == id))
            # The volume first: snapshots without one are removed by open.
            for volume in sorted(mine, key=lambda volume: volume.name):
                await self._remove(volume.name)

    async def _shred(self, volume: LogicalVolume) -> None:
        await self._do("lvchange", "-y", "-ay", "-K", f"{self.group}/{volume.name}")
        text = await self._metadata("thin_dump", "--dev-id", volume.thin_id)
        node: Node = {"driver": "host_device", "filename": str(self._device(volume.name))}
        await qemu_io.overwrite(node, thin.mapped(text, volume.thin_id), 0xFF)

    async def delta(self, id: str, since: str, until: str | None = None) -> list[Extent] | None:
        one, other = await self._find(id, since), await self._find(id, until)
        return thin.changed(await self._metadata("thin_delta", "--snap1", one.thin_id, "--snap2", other.thin_id))

    async def _metadata(self, tool: str, *words: str) -> bytes:
        """Run *tool* over the pool's metadata as it is at one instant (thin-provisioning.rst of the kernel, ``reserve_metadata_snap``)."""
        mapped = f"{self.group.replace('-', '--')}-{self.pool.replace('-', '--')}"
        # There is one such snapshot a pool.
        async with self._reading:
            await self._do("dmsetup", "message", f"{mapped}-tpool", "0", "reserve_metadata_snap")
            try:
                return await self._do(tool, "-m", *words, f"/dev/mapper/{mapped}_tmeta")
            finally:
                await self._do("dmsetup", "message", f"{mapped}-tpool", "0", "release_metadata_snap")

    async def check(self, *, repair: bool) -> list[StorageFinding]:
        findings: list[StorageFinding] = []
        for volume in await self._all():
            kind = volume.name.partition(".")[0]
            if kind in ("half", "gone"):
                if repair:
                    await self._remove(volume.name)
                findings.append(StorageFinding(subject=volume.name, problem="work on it was cut short", mended=repair))
            elif volume.health:
                findings.append(
                    StorageFinding(subject=volume.name, problem=f"LVM says {volume.health}", hint="see lvmthin(7)")
                )
        return findings

    async def scrub(self, *, repair: bool) -> tuple[int, list[StorageFinding]]:
        raise Unsupported("a thin pool keeps no checksums", hint="put it on RAID or dm-integrity and check that")

    async def _all(self) -> list[LogicalVolume]:
        """Everything of this thin pool, and the pool."""
        out = await self._do(
            *("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", thin.COLUMNS, self.group)
        )
        return [volume for volume in thin.logical_volumes(out) if self.pool in (volume.pool, volume.name)]

    async def _thin_pool(self) -> LogicalVolume:
        for volume in await self._all():
            if volume.name == self.pool and volume.is_thin_pool:
                return volume
        raise Unavailable(
            f"group {self.group} has no thin pool {self.pool}",
            hint=f"lvcreate --type thin-pool -L 100G -n {self.pool} {self.group}",
        )

    async def _find(self, id: str, snapshot: str | None = None) -> LogicalVolume:
        _check_id(id)
        name = f"{id}.{snapshot}" if snapshot is not None else id
        for volume in await self._all():
            if volume.name == name:
                return volume
        raise self._missing(id, snapshot)

    def _missing(self, id: str, snapshot: str | None = None) -> NotFound:
        what = f"snapshot {snapshot} of volume {id}" if snapshot else f"volume {id}"
        return NotFound(f"thin pool {self.path} has no {what}", hint="ask the pool's inventory for what there is")

    def _located(self, volume: LogicalVolume) -> VolumeHandle:
        return VolumeHandle(id=volume.name, form=VolumeForm.BLOCK, path=self._device(volume.name), size=volume.bytes)

    def _device(self, name: str) -> Path:
        return Path("/dev") / self.group / name

    async def _rename(self, old: str, new: str) -> None:
        await self._do("lvrename", "-y", self.group, old, new)

    async def _remove(self, name: str) -> None:
        await self._do("lvremove", "-y", "-f", f"{self.group}/{name}")

    async def _do(self, *argv: str) -> bytes:
        """:raise NoRoom: when the pool or group is full. :raise Unavailable: when the tool refuses."""
        said = await command.run(
            [str(binaries.tool(argv[0])), *argv[1:]], timeout=_SOON, environment={"LVM_SUPPRESS_FD_WARNINGS": "1"}
        )
        if said.code == 0:
            return said.out
        if any(mark in said.error for mark in ("insufficient free space", "out of data space", os.strerror(28))):
            raise NoRoom(f"cannot {argv[0]}: thin pool {self.path} is full", hint=f"lvextend {self.path}")
        raise Unavailable(f"{argv[0]} refused: {said.error[-300:] or said.code}", hint="see lvs -a, and dmesg")


def _check_id(id: str) -> None:
    if not is_id(id):
        raise Invalid(f"{id!r} is not an id", hint="ids look like vol_ and 26 characters", field="id")
