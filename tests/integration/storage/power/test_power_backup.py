"""The power is cut while a volume is backed up and restored; the repository and the pool are on the disk that is cut.

After each cut the repository is sound and every backup that was acknowledged is whole; the volume is what it was, or what was restored
over it, never half of both; and what was under way can be asked again.
"""

import asyncio
import os
import random
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from power_disk import EXT4, PowerDisk, Start
from power_home import PowerHome, woken
from volumes_lab import MIB, directory_volume, new_snapshot, new_volume, problems

from lamella.model.backup import Backup, BackupSpec, BackupStatus, Repository, RepositorySpec, RepositoryStatus
from lamella.model.backup_requests import (
    AnyBackupRequest,
    BackUp,
    OpenRepository,
    RepositoryMade,
    RestoreBackup,
    Verified,
    VerifyBackups,
)
from lamella.model.instance import Isolation
from lamella.model.resource import new_resource
from lamella.model.storage import Snapshot, Volume, VolumeForm, VolumeStatus

CUTS = int(os.environ.get("LAMELLA_CUTS", "12")) // 4
SEED = int(os.environ.get("LAMELLA_SEED", "4"))
SIZE = 16 * MIB


@dataclass(frozen=True)
class Done:
    """A request for ``volume``, what that held ``before`` and ``after``, and the backups that were acknowledged when it was asked."""

    request: AnyBackupRequest
    volume: Volume
    snapshots: list[Snapshot]
    before: bytes
    after: bytes
    backups: dict[str, bytes]
    asked: int
    acknowledged: int


class Story:
    """Two backups of one volume, the second of what changed, and the first restored over it."""

    def __init__(self, home: PowerHome, disk: PowerDisk, volume: Volume, vault: Path) -> None:
        self._home, self._disk = home, disk
        self.volume = volume
        spec = RepositorySpec(url=str(vault))
        self.repository: Repository = new_resource("repository", "vault", spec, RepositoryStatus())
        self.rows: dict[str, Backup] = {}
        self.done: list[Done] = []
        self._snapshots: list[Snapshot] = []
        self._backups: dict[str, bytes] = {}

    async def tell(self) -> None:
        made = await self._home.ask(OpenRepository(repository=self.repository), RepositoryMade)
        status = msgspec.structs.replace(self.repository.status, key=made.key, credentials=made.credentials)
        self.repository = msgspec.structs.replace(self.repository, status=status)
        first, second = os.urandom(3 * MIB), os.urandom(2 * MIB)
        await put(self._home, self.volume, first)
        backup = await self._back_up(first)
        # The end stays: only what changed is read.
        changed = second + first[len(second) :]
        await put(self._home, self.volume, changed)
        await self._back_up(changed, backup)
        asked = self._disk.moment()
        request = RestoreBackup(backup=backup, repository=self.repository, volume=self.volume)
        await self._home.ask(request, VolumeStatus)
        self._note(request, changed, first, asked)

    async def _back_up(self, content: bytes, base: Backup | None = None) -> Backup:
        snapshot = await self._home.take(self.volume, snapshot=new_snapshot(self.volume))
        self._snapshots.append(snapshot)
        spec = BackupSpec(repository=self.repository.id, volume=self.volume.id, volume_name=self.volume.name)
        row: Backup = new_resource("backup", f"data-{len(self.rows)}", spec, BackupStatus())
        request = BackUp(backup=row, repository=self.repository, volume=self.volume, snapshot=snapshot.id, base=base)
        asked = self._disk.moment()
        status = await self._home.ask(request, BackupStatus)
        self._note(request, content, content, asked)
        row = msgspec.structs.replace(row, status=msgspec.structs.replace(status, snapshot=snapshot.id))
        self.rows[row.id] = row
        self._backups = {**self._backups, row.id: content}
        return row

    def _note(self, request: AnyBackupRequest, before: bytes, after: bytes, asked: int) -> None:
        snapshots, now = list(self._snapshots), self._disk.moment()
        self.done.append(Done(request, self.volume, snapshots, before, after, self._backups, asked, now))


async def put(home: PowerHome, volume: Volume, content: bytes) -> None:
    """*content* at the beginning of the volume, on the disk when this returns."""
    await asyncio.to_thread(_write, await _file(home, volume), content)
    await home.wing.detach("inst_one")


async def holds(home: PowerHome, volume: Volume, length: int) -> bytes:
    file = await _file(home, volume)
    try:
        return await asyncio.to_thread(_read, file, length)
    finally:
        await home.wing.detach("inst_one")


async def _file(home: PowerHome, volume: Volume) -> Path:
    tree = volume.spec.form is VolumeForm.FILESYSTEM
    mounted = await home.attach(volume, "inst_one", Isolation.CONTAINER if tree else Isolation.UNIKERNEL)
    return mounted.path / "file" if tree else mounted.path


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if path.name == "file":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _read(path: Path, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, 0)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("form", ["block", "tree"])
async def test_nothing_acknowledged_is_lost(powered: Start, form: str) -> None:
    disk = powered(EXT4)
    mark = f"lamella-pw{os.urandom(3).hex()}"
    home = PowerHome(disk.place, mark)
    await home.begin()
    try:
        volume = await home.create(new_volume("data", SIZE) if form == "block" else directory_volume())
        story = Story(home, disk, volume, disk.place / "vault")
        await story.tell()
    finally:
        await home.leave()
    disk.stop()
    chance = random.Random(SEED)
    for moment, index in sorted(cuts(disk, story.done, chance)):
        one = story.done[index]
        between = moment < one.acknowledged
        keep = chance.choice((0.0, 0.3, 0.7, 0.95, 1.0))
        with disk.after(moment, keep, chance, between=between) as place:
            try:
                async with woken(place, mark) as home:
                    await verify(home, story, one, between)
            except AssertionError as error:
                error.add_note(f"cut at {moment} during {type(one.request).__name__}, keep={keep}, seed {SEED}")
                raise


def cuts(disk: PowerDisk, done: list[Done], chance: random.Random) -> list[tuple[int, int]]:
    """(how long the log was, which request was the last one that was asked)."""
    found: list[tuple[int, int]] = []
    for number in range(CUTS):
        # The restore as often as both backups.
        index = (2, 0, 2, 1)[number % 4]
        one = done[index]
        moments = disk.moments(one.asked, one.acknowledged)
        at_once = chance.random() < 0.25
        found.append((one.acknowledged if at_once else chance.choice([one.asked, *moments]), index))
    return found


async def verify(home: PowerHome, story: Story, one: Done, between: bool) -> None:
    length = len(one.before)
    now = await holds(home, one.volume, length)
    assert now in ([one.before, one.after] if between else [one.after]), "the volume is half of both"
    backups = dict(one.backups)
    if isinstance(one.request, BackUp) and not between:
        backups[one.request.backup.id] = one.after
    await sound(home, story.repository, [story.rows[id] for id in backups])
    if between:
        await again(home, story, one)
        assert await holds(home, one.volume, length) == one.after
    for id, content in backups.items():
        copy = new_volume("copy", SIZE) if one.volume.spec.form is VolumeForm.BLOCK else directory_volume("copy")
        request = RestoreBackup(backup=story.rows[id], repository=story.repository, volume=copy, fresh=True)
        await home.ask(request, VolumeStatus)
        assert await holds(home, copy, length) == content


async def again(home: PowerHome, story: Story, one: Done) -> None:
    if isinstance(one.request, RestoreBackup):
        await home.ask(one.request, VolumeStatus)
        return
    assert isinstance(one.request, BackUp)
    status = await home.ask(one.request, BackupStatus)
    await sound(home, story.repository, [msgspec.structs.replace(one.request.backup, status=status)])


async def sound(home: PowerHome, repository: Repository, backups: list[Backup]) -> None:
    """``restic check`` of all of it, and each backup compared with what was backed up."""
    request = VerifyBackups(repository=repository, backups=backups, all=backups, share=100)
    seen = await home.ask(request, Verified)
    assert not seen.damaged and not seen.report.findings, problems(seen.report)
