"""``fsck`` of storage and ``pool scrub``: what control knows against what lies in the pools, and what lies there against itself."""

import contextlib

from lamella.host.linux.blocking import blocking
from lamella.host.storage import ext4
from lamella.host.storage.attaching import TREE, Attaching
from lamella.host.storage.driver import StorageDriver
from lamella.host.storage.parts import Parts
from lamella.host.storage.requests import Tell
from lamella.model.errors import Corrupt, LamellaError, NotFound, Unavailable
from lamella.model.storage import Feature, Snapshot, StoragePhase, Volume, VolumeForm
from lamella.model.storage_requests import CheckStorage, Report, ScrubPool, StorageFinding


class Checking:
    """Answers CheckStorage and ScrubPool."""

    def __init__(self, parts: Parts, attaching: Attaching) -> None:
        self._parts = parts
        self._attaching = attaching
        parts.requests.serve(CheckStorage, self.check)
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
        known = {volume.id for volume in volumes}
        hidden = {copy for id in known for copy in self._parts.stacks.made(id).copies.values()}
        await self._orphans(name, pool, there - known - hidden, request, report)
        for volume in volumes:
            tell("check", report.checked, len(request.volumes), "volumes")
            await self._volume(volume, pool, volume.id in there, snapshots.get(volume.id, set()), request, report)
            report.checked += 1

    async def _orphans(
        self, name: str, pool: StorageDriver, orphans: set[str], request: CheckStorage, report: Report
    ) -> None:
        for id in sorted(orphans):
            if id in self._parts.opened:
                continue
            finding = StorageFinding(
                subject=id,
                problem=f"pool {name} holds a volume that nobody knows",
                hint="lamella fsck --remove-orphans removes it",
            )
            if request.remove_orphans:
                try:
                    async with self._parts.locks.of([id]):
                        await pool.delete(id)
                        await blocking(self._parts.records.made.forget, id)
                    finding.mended = True
                except LamellaError as error:
                    finding.hint = error.message
            report.findings.append(finding)

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
                await self._snapshots(volume, pool, snapshots, request, report)
            if volume.spec.form is not VolumeForm.BLOCK or volume.id in self._parts.opened:
                return
            # One that its instance opens by itself is its instance's to look at.
            if volume.spec.owner is None:
                await self._content(volume, request, report)

    async def _snapshots(
        self, volume: Volume, pool: StorageDriver, known: set[str], request: CheckStorage, report: Report
    ) -> None:
        if Feature.SNAPSHOT in pool.features:
            there = set(await pool.snapshots(volume.id))
        else:
            there = set(self._parts.stacks.made(volume.id).copies)
        for id in sorted(known - there):
            problem = f"snapshot {id} of volume {volume.name} is not in its pool any more"
            report.findings.append(StorageFinding(subject=id, problem=problem, hint="remove it, and take another"))
        for id in sorted(there - known):
            finding = StorageFinding(
                subject=id,
                problem=f"volume {volume.name} has a snapshot that nobody knows",
                hint="lamella fsck --remove-orphans removes it",
            )
            closed = volume.id not in self._parts.opened and not await self._parts.runs(volume)
            if request.remove_orphans and closed and Feature.SNAPSHOT in pool.features:
                try:
                    await pool.drop(volume.id, id)
                    finding.mended = True
                except LamellaError as error:
                    finding.hint = error.message
            report.findings.append(finding)

    async def _content(self, volume: Volume, request: CheckStorage, report: Report) -> None:
        """Whether it opens (its header, its key), and whether its filesystem is whole."""
        tools = self._attaching.mounts.tools
        try:
            key = await self._parts.stacks.key(volume)
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


def volumes_of(snapshot: Snapshot) -> list[str]:
    """Ids of the volumes that a snapshot is of."""
    return [*snapshot.spec.volumes, *([snapshot.spec.volume] if snapshot.spec.volume is not None else [])]
