"""The driver ``iscsi``: the pool is a target whose LUNs others made; a volume takes the smallest free one that holds it.

Which LUN is whose is written on the LUN (label.py), so every host reads the same, and a host that is lost takes no knowledge along. A
LUN whose first MiB is neither zeros nor a label of ours is never touched. iSCSI has no snapshots and no clones: the layer copies.
A label also says which host is making or releasing the volume: no other host finishes that, since it may still be writing.
"""

import asyncio
import secrets
from pathlib import Path

from msgspec.structs import replace

from lamella.host.linux import binaries
from lamella.host.storage import command, owner, qemu_io
from lamella.host.storage.driver import Base, Extent, Node, Source, VolumeHandle
from lamella.host.storage.iscsi.label import DATA, Label, State
from lamella.host.storage.iscsi.target import Lun, Target
from lamella.model.errors import Internal, Invalid, NoRoom, NotFound, Unavailable, Unsupported
from lamella.model.ids import is_id
from lamella.model.resource import Condition
from lamella.model.storage import Feature, PoolStatus, VolumeForm
from lamella.model.storage_requests import StorageFinding

_GRAIN = 4096


class IscsiDriver:
    """``PoolSpec.path`` and options: :class:`Target`."""

    name = "iscsi"
    features = frozenset({Feature.BLOCK, Feature.SHRINK, Feature.SHARED})

    def __init__(self, path: Path, options: dict[str, str] | None = None) -> None:
        self.target = Target(str(path), options or {})
        # Labels are read, chosen from and written by one verb at a time.
        self._choosing = asyncio.Lock()
        self._place: Path | None = None
        self._owner = owner.passing()

    def place(self, directory: Path, mark: str) -> None:
        self._place = directory

    async def open(self) -> PoolStatus:
        """What a crash of this host cut short is let go: a volume that was being made is asked for again."""
        self.target.check()
        if self._place is not None:
            self._owner = await asyncio.to_thread(owner.lasting, self._place)
        luns = await self.target.luns()
        for lun in luns:
            if lun.label is not None and lun.label.owner == self._owner and _half(lun.label):
                await self._release(lun, lun.label)
        return self._status(await self.target.luns())

    async def close(self) -> None:
        pass

    async def status(self) -> PoolStatus:
        """``capacity`` is of the LUNs that are ours or could be."""
        return self._status(await self.target.luns())

    def _status(self, luns: list[Lun]) -> PoolStatus:
        foreign = [str(lun.number) for lun in luns if not _ours(lun)]
        conditions: list[Condition] = []
        if foreign:
            conditions.append(
                Condition(
                    type="Foreign",
                    status=True,
                    reason="NotOurs",
                    message=f"LUNs {', '.join(foreign)} hold something that is not of this pool and are left alone",
                    hint="to give one to the pool, overwrite its first MiB with zeros",
                )
            )
        return PoolStatus(
            capacity=sum(lun.capacity - DATA for lun in luns if _ours(lun)),
            free=sum(lun.capacity - DATA for lun in luns if _free(lun)),
            features=sorted(self.features),
            conditions=conditions,
        )

    async def inventory(self) -> set[str]:
        return {lun.label.id for lun in await self.target.luns() if lun.label and lun.label.state is State.READY}

    async def create(
        self, id: str, form: VolumeForm, size: int, *, base: Base | None = None, source: Source | None = None
    ) -> VolumeHandle:
        """Of size 0 and without *base* it gets the whole of the smallest free LUN."""
        _check_id(id)
        if form is not VolumeForm.BLOCK:
            raise Unsupported(
                "an iscsi pool holds block volumes only", hint="format one: filesystem ext4", field="form"
            )
        if source is not None:
            raise Unsupported("an iscsi pool has no snapshots to begin from", hint="copy the volume")
        least = base.size if base is not None else 0
        if size < 0 or 0 < size < least:
            raise Invalid(
                f"a volume of {size} bytes cannot hold what it begins as, {least} bytes",
                hint="ask for more, or for 0 to take its size",
                field="size",
            )
        async with self._choosing:
            lun, label = await self._adopt(id, _rounded(size or least))
            if label.state is not State.READY:
                await self._fill(lun, label, base)
                label = replace(label, state=State.READY, clean=True)
                await self.target.write(lun.number, label)
        return _located(label)

    async def _adopt(self, id: str, size: int) -> tuple[Lun, Label]:
        """The LUN that is to be, or is already, the volume *id*.

        :raise NoRoom: when none is free that is large enough.
        """
        luns = await self.target.luns()
        for lun in luns:
            if lun.label is not None and lun.label.id == id and lun.label.state in (State.MAKING, State.READY):
                label = lun.label
                if label.state is State.MAKING and label.owner != self._owner:
                    label = replace(label, owner=self._owner)
                    await self.target.write(lun.number, label)
                return lun, label
        fitting = [lun for lun in luns if _free(lun) and lun.capacity - DATA >= size]
        for lun in sorted(fitting, key=lambda lun: lun.capacity):
            mine = Label(
                state=State.MAKING,
                id=id,
                size=size or (lun.capacity - DATA) // _GRAIN * _GRAIN,
                owner=self._owner,
                token=secrets.token_hex(8),
                clean=lun.label is not None,
            )
            await self.target.write(lun.number, mine)
            # Another host may have chosen the same: whose label stands has it.
            now = next((now for now in await self.target.luns() if now.number == lun.number), None)
            if now is not None and now.label == mine:
                return now, mine
        raise NoRoom(
            f"iSCSI target {self.target.path} has no free LUN of {size + DATA} bytes",
            hint="make one at the target, or delete volumes",
            field="size",
        )

    async def _fill(self, lun: Lun, label: Label, base: Base | None) -> None:
        """Zeros behind the label, unless they are known to be there, and *base* over them. Again after a crash: all of it."""
        whole = _data(self.target.node(lun.number), lun.capacity - DATA)
        if not label.clean or base is not None:
            await qemu_io.zero(whole, lun.capacity - DATA)
        if base is not None:
            await _copy(base, _data(self.target.node(lun.number), label.size))

    async def handle(self, id: str) -> VolumeHandle:
        return _located((await self._find(id))[1])

    async def node(self, id: str, snapshot: str | None = None) -> Node:
        if snapshot is not None:
            raise NotFound(f"volume {id} has no snapshot {snapshot}", hint="an iscsi pool keeps none")
        lun, label = await self._find(id)
        return _data(self.target.node(lun.number), label.size)

    async def used(self, id: str) -> int:
        """Volume and label. What is left of its LUN nobody else can have either: see :meth:`status`."""
        return (await self._find(id))[1].size + DATA

    async def resize(self, id: str, size: int) -> VolumeHandle:
        """Within its LUN. What a shrunken one loses is zeroed."""
        wanted = _rounded(size)
        async with self._choosing:
            lun, label = await self._find(id)
            if wanted > lun.capacity - DATA:
                raise NoRoom(
                    f"LUN {lun.number} holds {lun.capacity - DATA} bytes of volume {id}, not {wanted}",
                    hint="grow the LUN at its target, or move the volume to another one",
                    field="size",
                )
            if wanted < label.size or not label.clean:
                # Cut short here, what was lost must neither be in what it grows to nor in another volume.
                ends = label.size if label.clean else lun.capacity - DATA
                label = replace(label, size=min(wanted, label.size), clean=False)
                await self.target.write(lun.number, label)
                rest = {"driver": "raw", "offset": DATA + label.size, "file": self.target.node(lun.number)}
                await qemu_io.zero(rest, ends - label.size)
            label = replace(label, size=wanted, clean=True)
            await self.target.write(lun.number, label)
        return _located(label)

    async def resized(self, id: str, size: int) -> None:
        """:raise Unsupported: always: its node has a fixed size, and QEMU refuses to change that."""
        raise Unsupported("a volume of an iscsi pool cannot be resized while it is open", hint="stop what uses it")

    async def snapshot(self, id: str, snapshot: str) -> None:
        raise Unsupported("an iscsi pool has no snapshots", hint="copy the volume, or use another pool")

    async def snapshots(self, id: str) -> list[str]:
        await self._find(id)
        return []

    async def drop(self, id: str, snapshot: str) -> None:
        """There never is one."""

    async def restore(self, id: str, snapshot: str) -> None:
        raise NotFound(f"volume {id} has no snapshot {snapshot}", hint="an iscsi pool keeps none")

    async def delete(self, id: str, *, shred: bool = False) -> None:
        """The LUN is zeroed before another volume may have it."""
        _check_id(id)
        async with self._choosing:
            for lun in await self.target.luns():
                if lun.label is not None and lun.label.id == id and not self._let_go(lun.label):
                    label = replace(lun.label, state=State.RELEASING, owner=self._owner)
                    await self.target.write(lun.number, label)
                    if shred:
                        data = [Extent(offset=0, length=label.size)]
                        await qemu_io.overwrite(_data(self.target.node(lun.number), label.size), data, 0xFF)
                    await self._release(lun, label)

    def _let_go(self, label: Label) -> bool:
        """Whether it is nobody's, or another host is about to make it so."""
        return label.state is State.FREE or (label.state is State.RELEASING and label.owner != self._owner)

    async def _release(self, lun: Lun, label: Label) -> None:
        whole = lun.capacity - DATA
        size = min(label.size, whole) if label.clean else whole
        await qemu_io.zero(_data(self.target.node(lun.number), whole), size)
        await self.target.write(lun.number, Label(state=State.FREE))

    async def delta(self, id: str, since: str, until: str | None = None) -> list[Extent] | None:
        return None

    async def check(self, *, repair: bool) -> list[StorageFinding]:
        """Labels that are damaged, double, or left by work that a crash cut short."""
        findings: list[StorageFinding] = []
        seen: dict[str, int] = {}
        async with self._choosing:
            for lun in await self.target.luns():
                findings += await self._check(lun, seen, repair=repair)
        return findings

    async def _check(self, lun: Lun, seen: dict[str, int], *, repair: bool) -> list[StorageFinding]:
        where = f"LUN {lun.number}"
        if lun.broken:
            return [
                StorageFinding(subject=where, problem=lun.broken, hint="restore the volume that it was from a backup")
            ]
        label = lun.label
        if label is None or label.state is State.FREE:
            return []
        if label.state is State.READY:
            if label.id in seen:
                problem = f"it and LUN {seen[label.id]} both say that they are {label.id}"
                return [StorageFinding(subject=where, problem=problem, hint="was a LUN copied at the target?")]
            seen[label.id] = lun.number
            if label.size > lun.capacity - DATA:
                problem = f"the LUN became smaller than volume {label.id}, which has {label.size} bytes"
                return [StorageFinding(subject=where, problem=problem, hint="grow it at the target again")]
            return []
        if label.owner != self._owner:
            problem = f"another host is {label.state} volume {label.id}, or was when it failed"
            hint = (
                "it finishes when it opens the pool; if it is gone for good, overwrite the LUN's first MiB with zeros"
            )
            return [StorageFinding(subject=where, problem=problem, hint=hint)]
        if repair:
            await self._release(lun, label)
        return [StorageFinding(subject=where, problem=f"{label.state} volume {label.id} was cut short", mended=repair)]

    async def scrub(self, *, repair: bool) -> tuple[int, list[StorageFinding]]:
        raise Unsupported(
            "an iscsi pool keeps no checksums", hint="let the target scrub its disks, or encrypt the volumes"
        )

    async def _find(self, id: str) -> tuple[Lun, Label]:
        _check_id(id)
        for lun in await self.target.luns():
            if lun.label is not None and lun.label.id == id and lun.label.state is State.READY:
                return lun, lun.label
        raise NotFound(
            f"iSCSI target {self.target.path} has no volume {id}", hint="ask the pool's inventory for what there is"
        )


def _ours(lun: Lun) -> bool:
    return lun.label is not None or lun.blank


def _free(lun: Lun) -> bool:
    return lun.label.state is State.FREE if lun.label is not None else lun.blank


def _half(label: Label) -> bool:
    return label.state in (State.MAKING, State.RELEASING)


def _data(file: Node, size: int) -> Node:
    return {"driver": "raw", "offset": DATA, "size": size, "file": file}


def _located(label: Label) -> VolumeHandle:
    return VolumeHandle(id=label.id, form=VolumeForm.BLOCK, path=Path(), size=label.size)


def _rounded(size: int) -> int:
    return -(-size // _GRAIN) * _GRAIN


def _check_id(id: str) -> None:
    if not is_id(id):
        raise Invalid(f"{id!r} is not an id", hint="ids look like vol_ and 26 characters", field="id")


async def _copy(base: Base, node: Node) -> None:
    """:raise Unavailable: when *base* cannot be read. :raise Internal: when qemu-img cannot write the LUN."""
    try:
        found = (await asyncio.to_thread(base.path.stat)).st_size
    except OSError as error:
        raise Unavailable(f"the image's disk {base.path} cannot be read: {error.strerror}") from error
    if found != base.size:
        raise Unavailable(f"the image's disk {base.path} has {found} bytes, not {base.size}")
    options, name = qemu_io.target(node)
    argv = [str(binaries.tool("qemu-img")), "convert", "-n", "--target-is-zero", "-f", "raw", *options]
    said = await command.run([*argv, "--target-image-opts", str(base.path), name], timeout=qemu_io.LONG)
    if said.code:
        raise Internal(f"qemu-img did not copy {base.path}: {said.error[-300:]}")
