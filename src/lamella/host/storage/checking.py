"""``fsck`` of storage and ``pool scrub``: what control knows against what lies in the pools, and what lies there against itself.

What a host does not know by what it was told may be another host's, or was made meanwhile: it is only named here. Control looks again,
and asks for each removal.
"""

import contextlib

from lamella.host.linux.blocking import blocking
from lamella.host.storage import ext4
from lamella.host.storage.attaching import Attaching
from lamella.host.storage.driver import StorageDriver
from lamella.host.storage.parts import Parts
from lamella.host.storage.records import MadeVolume
from lamella.host.storage.requests import Tell
from lamella.host.storage.ways import TREE
from lamella.model.errors import Conflict, Corrupt, LamellaError, NotFound, Unavailable
from lamella.model.storage import Feature, Snapshot, StoragePhase, Volume, VolumeForm
from lamella.model.storage_report import Orphan
from lamella.model.storage_requests import CheckStorage, RemoveOrphan, Report, ScrubPool, StorageFinding

# What the person is told of an orphan that stays.
HINT = "lamella fsck --remove-orphans removes it"


class Checking:
    """Answers CheckStorage, RemoveOrphan and ScrubPool."""

    def __init__(self, parts: Parts, attaching: Attaching) -> None:
        self._parts = parts
        self._attaching = attaching
        parts.requests.serve(CheckStorage, self.check)
        parts.requests.serve(RemoveOrphan, self.remove)
        parts.requests.serve(ScrubPool, self.scrub)

    async def scrub(self, request: ScrubPool, tell: Tell) -> Report:
        """:class:`ScrubPool`.

        :raise Unsupported: when nothing in that pool tells a flipped bit from a written one.
        """
        tell("scrub", 0, 0, "bytes")
        pool = self._parts.pools.get(request.pool.name)
        read, findings = await pool.scrub(repair=request.repair)
        return Report(checked=len(await pool.inventory()), bytes=read, findings=findings)

    async def check(self, request: CheckStorage, tell: Tell) -> Report:
        """:class:`CheckStorage`. What is open is looked at from outside only."""
        report = Report()
        snapshots: dict[str, set[str]] = {}
        for snapshot in request.snapshots:
            for id in volumes_of(snapshot):
                snapshots.setdefault(id, set()).add(snapshot.id)
        by_pool: dict[str, list[Volume]] = {}
        for volume in request.volumes:
            by_pool.setdefault(volume.spec.pool, []).append(volume)
        for name in sorted({*by_pool, *self._parts.pools.opened}):
            try:
                looking = self._pool(name, by_pool.get(name, []), snapshots, request, report, tell)
                await self._parts.stalls.bounded([name], looking)
            except LamellaError as error:
                report.findings.append(StorageFinding(subject=name, problem=error.message, hint=error.hint))
        await self._strays(report)
        return report

    async def _pool(
        self,
        name: str,
        volumes: list[Volume],
        snapshots: dict[str, set[str]],
        request: CheckStorage,
        report: Report,
        tell: Tell,
    ) -> None:
        pool = self._parts.pools.get(name)
        there = await pool.inventory()
        report.findings += await pool.check(repair=request.repair)
        known = {*request.known, *(volume.id for volume in request.volumes)}
        await self._orphans(name, there - known - await self._hidden(), report)
        for volume in request.volumes:
            if volume.id in there and volume.spec.pool != name:
                report.findings.append(_elsewhere(volume, name))
        for volume in volumes:
            tell("check", report.checked, len(request.volumes), "volumes")
            await self._volume(volume, pool, volume.id in there, snapshots.get(volume.id, set()), request, report)
            report.checked += 1

    async def _hidden(self) -> set[str]:
        """The volumes that keep snapshots of others, where a pool has none."""
        records = self._parts.records.made

        def read() -> set[str]:
            made = (records.read(id, MadeVolume) for id in records.ids())
            return {copy for volume in made if volume is not None for copy in volume.copies.values()}

        return await blocking(read)

    async def _in_use(self, id: str) -> bool:
        parts = self._parts
        return id in parts.opened or parts.locks.held(id) or id in await parts.daemon.inventory()

    async def _orphans(self, name: str, orphans: set[str], report: Report) -> None:
        for id in sorted(orphans):
            if await self._in_use(id):
                continue
            problem = f"pool {name} holds a volume that nobody knows"
            orphan = Orphan(pool=name, volume=id)
            report.findings.append(StorageFinding(subject=id, problem=problem, hint=HINT, orphan=orphan))

    async def remove(self, request: RemoveOrphan, tell: Tell) -> None:
        """:class:`RemoveOrphan`.

        :raise Conflict: when somebody has it open or works on it, or this host keeps it for itself.
        """
        orphan, parts = request.orphan, self._parts
        id = orphan.volume
        pool = parts.pools.get(orphan.pool)
        if await self._in_use(id):
            raise Conflict(f"volume {id} is in use", hint="stop its instance, or wait until its operation has ended")
        async with parts.locks.of([id]):
            if orphan.snapshot:
                if orphan.snapshot in self._kept(id):
                    raise Conflict(f"snapshot {orphan.snapshot} is what a replica or a restore stands on")
                await pool.drop(id, orphan.snapshot)
                return
            if id in await self._hidden():
                raise Conflict(f"volume {id} keeps a snapshot of another volume")
            await pool.delete(id)
            await blocking(parts.records.made.forget, id)

    def _kept(self, id: str) -> set[str]:
        return {snapshot for kept in self._parts.kept for snapshot in kept(id)}

    async def _volume(
        self,
        volume: Volume,
        pool: StorageDriver,
        there: bool,
        snapshots: set[str],
        request: CheckStorage,
        report: Report,
    ) -> None:
        if not there:
            if volume.status.phase is not StoragePhase.PENDING:
                problem = f"volume {volume.name} is not in pool {volume.spec.pool} any more"
                report.findings.append(
                    StorageFinding(subject=volume.id, problem=problem, hint="restore it from a backup")
                )
            return
        async with self._parts.locks.of([volume.id]):
            with contextlib.suppress(NotFound):
                await self._snapshots(volume, pool, snapshots, report)
            if volume.spec.form is not VolumeForm.BLOCK or volume.id in self._parts.opened:
                return
            # One that its instance opens by itself is its instance's to look at.
            if volume.spec.owner is None:
                await self._content(volume, request, report)

    async def _snapshots(self, volume: Volume, pool: StorageDriver, known: set[str], report: Report) -> None:
        native = Feature.SNAPSHOT in pool.features
        there = set(await pool.snapshots(volume.id) if native else self._parts.stacks.made(volume.id).copies)
        for id in sorted(known - there):
            problem = f"snapshot {id} of volume {volume.name} is not in its pool any more"
            report.findings.append(StorageFinding(subject=id, problem=problem, hint="remove it, and take another"))
        open = volume.id in self._parts.opened or await self._parts.runs(volume)
        for id in sorted(there - known - self._kept(volume.id)):
            finding = StorageFinding(subject=id, problem=f"volume {volume.name} has a snapshot that nobody knows")
            if open:
                finding.hint = "it is removed while nobody has the volume open"
            elif native:
                finding.hint, finding.orphan = HINT, Orphan(pool=volume.spec.pool, volume=volume.id, snapshot=id)
            report.findings.append(finding)

    async def _content(self, volume: Volume, request: CheckStorage, report: Report) -> None:
        """Whether it opens (its header, its key), and whether its filesystem is whole."""
        tools = self._attaching.mounts.tools
        try:
            for check in self._parts.may_open:
                await blocking(check, volume)
            key = await self._parts.stacks.key(volume)
        except Conflict:
            # A replica, or what is half restored: it is written by whoever keeps it, and by nobody else.
            return
        except Unavailable:
            # Nobody brought the passphrase: what lies under it cannot be judged.
            return
        except LamellaError as error:
            report.findings.append(StorageFinding(subject=volume.id, problem=error.message, hint=error.hint))
            return
        if not key and not volume.spec.filesystem:
            return
        try:
            async with self._parts.disk(volume) as file:
                if volume.spec.filesystem and await blocking(ext4.read, file) is None:
                    raise Corrupt(f"volume {volume.name} holds no {volume.spec.filesystem} filesystem any more")
                if volume.spec.filesystem and (problem := await tools.inspect(file)):
                    finding = StorageFinding(subject=volume.id, problem=f"its filesystem: {problem}")
                    report.findings.append(finding)
                    if request.repair:
                        await tools.check(file, fully=True)
                        finding.mended = True
        except (LamellaError, OSError) as error:
            message = error.message if isinstance(error, LamellaError) else str(error)
            report.findings.append(
                StorageFinding(subject=volume.id, problem=message, hint="restore a snapshot or a backup")
            )

    async def _strays(self, report: Report) -> None:
        """What is open or mounted for nobody is closed."""
        for id in sorted(await blocking(self._attaching.mounts.mounted)):
            if id not in self._parts.opened:
                async with self._parts.locks.of([id]):
                    await self._attaching.mounts.unmount(id)
                report.findings.append(StorageFinding(subject=id, problem="it was mounted for nobody", mended=True))
        open = await self._parts.daemon.inventory()
        for id, record in self._parts.opened.all.items():
            if record.way != TREE and id not in open:
                report.findings.append(
                    StorageFinding(
                        subject=id,
                        problem="it is attached, and the storage process has it not open",
                        hint="stop its instance and start it again",
                    )
                )


def _elsewhere(volume: Volume, pool: str) -> StorageFinding:
    return StorageFinding(
        subject=volume.id,
        problem=f"pool {pool} holds volume {volume.name}, which is in pool {volume.spec.pool} by its row",
        hint=f"lamella volume move {volume.name} --pool {pool} ends what was begun",
    )


def volumes_of(snapshot: Snapshot) -> list[str]:
    """Ids of the volumes that a snapshot is of."""
    return [*snapshot.spec.volumes, *([snapshot.spec.volume] if snapshot.spec.volume is not None else [])]
