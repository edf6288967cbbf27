"""A volume that a backup is restored over: it is what it was until the new is whole, whatever goes wrong meanwhile."""

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.volumes.volumes_lab import MIB, VolumesLab, directory_volume, ext4_volume

from lamella.host.linux import syscalls
from lamella.host.storage.backup.restoring import Restoring
from lamella.host.storage.wing import Attachment
from lamella.model.backup import Backup, BackupSpec, BackupStatus, Repository, RepositorySpec, RepositoryStatus
from lamella.model.backup_requests import (
    BackUp,
    MountBackup,
    OpenRepository,
    RepositoryMade,
    RestoreBackup,
    UnmountBackup,
    Verified,
    VerifyBackups,
)
from lamella.model.errors import Conflict, Corrupt, LamellaError, NoRoom, NotFound, Unavailable
from lamella.model.instance import InstanceSpec
from lamella.model.resource import new_resource
from lamella.model.storage import KeyWrap, PoolSpec, PoolStatus, Volume, VolumeMount, VolumeStatus
from lamella.model.storage_requests import OpenPool

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]

FORMS = ("encrypted", "tree")


class Vault:
    """A lab with a repository."""

    def __init__(self, lab: VolumesLab, repository: Repository, place: Path) -> None:
        self.lab, self.repository, self.place = lab, repository, place

    async def back_up(self, volume: Volume, base: Backup | None = None) -> Backup:
        backup = a_backup(volume, self.repository)
        snapshot = await self.lab.take(volume)
        request = BackUp(backup=backup, repository=self.repository, volume=volume, snapshot=snapshot.id, base=base)
        backup.status = await self.lab.ask(request, BackupStatus)
        return backup

    async def restore(self, backup: Backup, volume: Volume, *, fresh: bool = False) -> None:
        request = RestoreBackup(backup=backup, repository=self.repository, volume=volume, fresh=fresh)
        volume.status = await self.lab.ask(request, VolumeStatus)

    async def shell(self, volume: Volume, script: str) -> str:
        """Run *script* where the volume is mounted, in a process of its own."""
        mount = VolumeMount(volume=volume.name, target="/data")
        spec = InstanceSpec(image="busybox", volumes=[mount])
        mounted = await self.lab.wing.attach(Attachment(volume=volume, mount=mount, user="i", uid=0, spec=spec))
        try:
            child = await asyncio.create_subprocess_exec(
                "sh", "-c", script, cwd=mounted.path, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await child.communicate()
            assert child.returncode == 0
            return out.decode().strip()
        finally:
            await self.lab.wing.detach("i")


def a_backup(volume: Volume, repository: Repository) -> Backup:
    spec = BackupSpec(repository=repository.id, volume=volume.id, volume_name=volume.name)
    return new_resource("backup", f"{volume.name}-{os.urandom(3).hex()}", spec, BackupStatus())


def a_volume(form: str, **spec: object) -> Volume:
    if form == "tree":
        return directory_volume()
    return ext4_volume(encryption=KeyWrap.KEY_FILE if form == "encrypted" else None, **spec)


@pytest_asyncio.fixture
async def vault(tmp_path: Path) -> AsyncIterator[Vault]:
    lab = VolumesLab()
    await lab.wing.open()
    place = tmp_path / "vault"
    repository: Repository = new_resource("repository", "vault", RepositorySpec(url=str(place)), RepositoryStatus())
    made = await lab.ask(OpenRepository(repository=repository), RepositoryMade)
    repository.status.key, repository.status.credentials = made.key, made.credentials
    yield Vault(lab, repository, place)
    await lab.end()


FILL = "dd if=/dev/urandom of=large bs=1M count=12 2>/dev/null; echo {} >letter; sync -f .; cat letter; md5sum <large"


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_restored_over_a_volume_is_what_was_backed_up(vault: Vault, form: str) -> None:
    volume = await vault.lab.create(a_volume(form))
    first = await vault.shell(volume, FILL.format("first"))
    backup = await vault.back_up(volume)
    second = await vault.shell(volume, FILL.format("second") + "; touch more")
    later = await vault.back_up(volume, backup)
    await vault.restore(backup, volume)
    assert await vault.shell(volume, "cat letter; md5sum <large; test ! -e more") == first
    # What changed since the newest backup is known to the next one still.
    third = await vault.shell(volume, "echo third >letter; sync -f .; cat letter; md5sum <large")
    last = await vault.back_up(volume, later)
    await vault.restore(later, volume)
    assert await vault.shell(volume, "cat letter; md5sum <large; test -e more") == second
    await vault.restore(last, volume)
    assert await vault.shell(volume, "cat letter; md5sum <large; test ! -e more") == third
    # Nothing is kept but the snapshots of the backups.
    pool = vault.lab.wing.pool("default")
    assert len(await pool.snapshots(volume.id)) == 3


@pytest.mark.parametrize("held", ["plain", "encrypted"])
async def test_nothing_plain_is_written_under_an_encrypted_volume_nor_the_other_way(vault: Vault, held: str) -> None:
    volume = await vault.lab.create(a_volume(held))
    await vault.shell(volume, "echo secret >letter; sync -f .")
    backup = await vault.back_up(volume)
    other = await vault.lab.create(a_volume("encrypted" if held == "plain" else "plain"))
    before = await vault.shell(other, "echo own >letter; sync -f .; cat letter")
    with pytest.raises(Conflict, match="one is encrypted, and the other is not"):
        await vault.restore(backup, other)
    assert await vault.shell(other, "cat letter") == before


@pytest.mark.parametrize("form", ["plain", *FORMS])
async def test_a_mounted_backup_outlives_the_daemon_and_a_restore_of_it(vault: Vault, form: str) -> None:
    volume = await vault.lab.create(a_volume(form))
    await vault.shell(volume, "echo first >letter; sync -f .")
    backup = await vault.back_up(volume)
    path = await vault.lab.ask(MountBackup(backup=backup, repository=vault.repository), str)
    try:
        assert await held_by(path) == "first"
        await vault.lab.restart()
        assert await held_by(path) == "first"
        await vault.restore(backup, volume)
        assert await held_by(path) == "first"
    finally:
        await vault.lab.ask(UnmountBackup(backup=backup), None)


@pytest.mark.parametrize("form", ["plain", "encrypted"])
async def test_a_damaged_filesystem_in_a_backup_is_not_mounted(vault: Vault, form: str) -> None:
    volume = await vault.lab.create(a_volume(form))
    await vault.shell(volume, "echo first >letter; sync -f .")
    async with vault.lab.wing.parts.disk(volume) as disk:
        # The root of the letter's extents, as whoever has the raw disk can leave it: the kernel mounts it.
        child = await asyncio.create_subprocess_exec("debugfs", "-w", "-R", "sif letter block[0] 0", str(disk))
        assert await child.wait() == 0
    backup = await vault.back_up(volume)
    ask = MountBackup(backup=backup, repository=vault.repository)
    with pytest.raises(Corrupt, match="filesystem is damaged") as damaged:
        await vault.lab.ask(ask, str)
    assert "new volume" in damaged.value.hint
    assert not [point for point in vault.lab.mounted() if "/backup/" in point]


async def held_by(path: str) -> str:
    """The letter, past the host's memory of it."""
    child = await asyncio.create_subprocess_exec(
        "dd", f"if={path}/letter", "iflag=nocache", "status=none", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    return out.decode().strip() if child.returncode == 0 else ""


async def test_a_file_that_changed_under_its_former_size_and_time_is_in_the_next_backup(vault: Vault) -> None:
    volume = await vault.lab.create(directory_volume())
    write = "echo {} >letter; touch -d 2026-01-01T00:00:00Z letter; sync -f .; stat -c '%s %Y' letter"
    seen = await vault.shell(volume, write.format("one"))
    first = await vault.back_up(volume)
    assert await vault.shell(volume, write.format("two")) == seen
    second = await vault.back_up(volume, first)
    for backup, held in ((second, "two"), (first, "one")):
        await vault.restore(backup, volume)
        assert await vault.shell(volume, "cat letter") == held


@pytest.mark.parametrize("form", ["plain", "tree"])
async def test_a_restore_that_fails_leaves_the_volume_what_it_was(vault: Vault, form: str) -> None:
    volume = await vault.lab.create(a_volume(form))
    await vault.shell(volume, FILL.format("first"))
    backup = await vault.back_up(volume)
    now = await vault.shell(volume, FILL.format("second"))
    look = "cat letter; md5sum <large"
    # Content that cannot be read: found when some of the volume is written over already.
    packs = sorted(vault.place.glob("data/*/*"), key=lambda path: path.stat().st_size)
    kept = packs[-1].read_bytes()
    flip(packs[-1])
    with pytest.raises(Corrupt) as damaged:
        await vault.restore(backup, volume)
    assert "verify" in damaged.value.hint
    assert await vault.shell(volume, look) == now
    seen = await vault.lab.ask(VerifyBackups(repository=vault.repository, backups=[backup], share=100), Verified)
    assert seen.damaged == [backup.status.engine_id]
    packs[-1].write_bytes(kept)
    # A repository that is not there: nothing of the volume is touched.
    vault.place.rename(vault.place.with_name("gone"))
    with pytest.raises((NotFound, Unavailable)) as gone:
        await vault.restore(backup, volume)
    assert gone.value.hint
    assert await vault.shell(volume, look) == now
    vault.place.with_name("gone").rename(vault.place)
    # The engine is killed at a random moment.
    for _ in range(3):
        work = asyncio.create_task(vault.restore(backup, volume))
        await asyncio.sleep(random.uniform(0.1, 0.7))
        killed = kill_engine(vault.lab)
        with suppress(LamellaError):
            await work
            assert not killed
            break
        assert await vault.shell(volume, look) == now
    await vault.restore(backup, volume)
    assert (await vault.shell(volume, look)).startswith("first")


def kill_engine(lab: VolumesLab) -> int:
    killed = 0
    for pid in lab.processes():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "restic":
                os.kill(pid, 9)
                killed += 1
    return killed


def flip(path: Path) -> None:
    """Bits of it, somewhere in the middle."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x55]))


@pytest.mark.parametrize("form", FORMS)
async def test_a_host_that_was_cut_off_goes_back_when_it_starts(vault: Vault, form: str) -> None:
    volume = await vault.lab.create(a_volume(form))
    first = await vault.shell(volume, FILL.format("first"))
    backup = await vault.back_up(volume)
    now = await vault.shell(volume, FILL.format("second"))
    keeping = vault.lab.wing._backups.keeping
    # As a crash in the middle leaves it: what was is kept, and what is there is neither.
    kept = keeping.kept(volume, lambda *_: None)
    await kept.__aenter__()
    with pytest.raises(Conflict, match="half restored"):
        await vault.shell(volume, "true")
    await vault.lab.restart()
    assert await vault.shell(volume, "cat letter; md5sum <large") == now
    await vault.restore(backup, volume)
    assert await vault.shell(volume, "cat letter; md5sum <large") == first


async def no_check(restoring: Restoring, volume: Volume, size: int) -> None:
    pass


def fill(ballast: Path, *, leave: int) -> None:
    """All of the filesystem but *leave* bytes."""
    free = shutil.disk_usage(ballast.parent).free
    subprocess.run(["fallocate", "-l", str(free - leave), str(ballast)], check=True)


@pytest.mark.parametrize("form", ["tree"])
async def test_a_pool_that_is_full_loses_nothing(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    look = "cat letter; md5sum <large"
    place = tmp_path / "small"
    place.mkdir()
    syscalls.mount("lamella-test", str(place), "tmpfs", 0, f"size={80 * MIB}")
    try:
        pool = new_resource("pool", "tight", PoolSpec(path=str(place / "pool")), PoolStatus())
        await vault.lab.ask(OpenPool(pool=pool), PoolStatus)
        volume = a_volume(form)
        volume.spec.pool = "tight"
        await vault.lab.create(volume)
        await vault.shell(volume, FILL.format("first"))
        backup = await vault.back_up(volume)
        now = await vault.shell(volume, FILL.format("second"))
        ballast = place / "ballast"
        # Too little, and it is known beforehand.
        fill(ballast, leave=4 * MIB)
        with pytest.raises(NoRoom, match="pool tight has"):
            await vault.restore(backup, volume)
        # Never mounted while the pool is full: its writer would wait for room, and whoever syncs with it.
        ballast.unlink()
        assert await vault.shell(volume, look) == now
        # Somebody else fills it meanwhile.
        monkeypatch.setattr(Restoring, "_check_room", no_check)
        fill(ballast, leave=4 * MIB)
        with pytest.raises((NoRoom, Corrupt)):
            await vault.restore(backup, volume)
        ballast.unlink()
        for _ in range(900):
            with suppress(Conflict):
                assert await vault.shell(volume, look) == now
                break
            await asyncio.sleep(0.1)
        assert await vault.shell(volume, look) == now
        await vault.restore(backup, volume)
        assert (await vault.shell(volume, look)).startswith("first")
        await vault.lab.wing.teardown()
        await vault.lab.wing.parts.pools.let_go("tight")
    finally:
        syscalls.umount(str(place))
